"""The command line: parse, call, print, exit code. Every decision is made elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from exporter.errors import EXIT_USAGE, InputError
from exporter.exits import print_json, reporting_errors, write_text

app = typer.Typer(
    name="exporter",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Make a trained model fit a device, and prove that it is no worse.\n\n"
    "Exit codes: **0** every budget passed, **1** a budget failed, **2** wrong usage or input, "
    "**3** too little evidence, **4** the tool itself failed.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from exporter import __version__

        typer.echo(f"exporter {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


Target_ = Annotated[
    str, typer.Option("--target", "-t", help="Profile name, or path to a .toml file.")
]
Data_ = Annotated[
    str | None,
    typer.Option(
        "--data",
        "-d",
        help="JSONL, CSV, Parquet, `datasets` directory, directory of split files, image folder, "
        "or package.module:function.",
    ),
]
Task_ = Annotated[str | None, typer.Option("--task", help="Overrides the inferred task.")]
Recipe_ = Annotated[
    str | None, typer.Option("--recipe", "-r", help="TOML file; replaces the profile's recipe.")
]
Column_ = Annotated[
    list[str] | None,
    typer.Option("--column", "-c", help="canonical=yours, such as text=review. May repeat."),
]
Seed_ = Annotated[int | None, typer.Option("--seed", min=0, help="Seed of everything random.")]
Pickle_ = Annotated[
    bool, typer.Option("--allow-pickle", help="Load .bin weights: they can run code.")
]
Remote_ = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
]
Json_ = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Debug_ = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


@app.command(
    epilog="Examples:\n\n"
    "`exporter export ./my-model --target mobile --data reviews.jsonl`\n\n"
    "`exporter export org/name -t edge -d data/ -c text=review --out dist/reviews`\n\n"
    "`exporter export model.onnx -t cloud-cpu -d images/ --task image-classification --json`"
)
def export(
    model: Annotated[
        str,
        typer.Argument(
            help="Checkpoint directory, hub id, .onnx file, or package.module:function."
        ),
    ],
    target: Target_ = "mobile",
    data: Data_ = None,
    task: Task_ = None,
    recipe: Recipe_ = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Default: dist/<model>-<target>.")
    ] = None,
    column: Column_ = None,
    seed: Seed_ = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Redo finished stages.")] = False,
    allow_pickle: Pickle_ = False,
    trust_remote_code: Remote_ = False,
    as_json: Json_ = False,
    debug: Debug_ = False,
) -> None:
    """Prune, fine-tune, export, quantize, judge and ship MODEL for a target."""
    with reporting_errors(debug, as_json):
        from exporter.display import progress_for
        from exporter.pipeline import export as run

        result = run(
            model,
            target=target,
            data=data,
            task=task,
            recipe=recipe,
            out=out,
            columns=_columns(column),
            seed=seed,
            fresh=fresh,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
            progress=progress_for(_stderr()),
        )
        _finish(result, as_json)


@app.command(
    epilog="Examples:\n\n`exporter check dist/code_lm-mobile`\n\n"
    "`exporter check dist/code_lm-mobile --target edge --json`"
)
def check(
    artifact: Annotated[Path, typer.Argument(help="The directory that `export` made.")],
    target: Annotated[
        str | None, typer.Option("--target", "-t", help="Judge against another profile.")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="Directory of the float32 model.onnx, when the cache has lost it."),
    ] = None,
    as_json: Json_ = False,
    debug: Debug_ = False,
) -> None:
    """Judge a finished ARTIFACT again, here, now."""
    with reporting_errors(debug, as_json):
        from exporter.display import progress_for
        from exporter.recheck import check as run

        result = run(artifact, target=target, reference=reference, progress=progress_for(_stderr()))
        _finish(result, as_json)


@app.command(
    epilog="Examples:\n\n`exporter compare released/code_lm-mobile dist/code_lm-mobile`\n\n"
    "`exporter compare OLD NEW --markdown comparison.md --json`"
)
def compare(
    old: Annotated[Path, typer.Argument(help="An artifact, such as the one last released.")],
    new: Annotated[Path, typer.Argument(help="The artifact that would replace it.")],
    tolerance: Annotated[
        float, typer.Option(help="Share by which time, size and memory may grow.")
    ] = 0.05,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time both here, now, in turns.")
    ] = False,
    markdown: Annotated[
        Path | None, typer.Option(help="Also write it to this file, for a pull request.")
    ] = None,
    as_json: Json_ = False,
    debug: Debug_ = False,
) -> None:
    """Say whether artifact NEW may replace artifact OLD, and what changed between them."""
    with reporting_errors(debug, as_json):
        from exporter.comparing import compare as run
        from exporter.display import progress_for
        from exporter.report.comparison_views import comparison_to_markdown, print_comparison

        found = run(
            old, new, tolerance=tolerance, measure=measure, progress=progress_for(_stderr())
        )
        if markdown is not None:
            write_text(markdown, comparison_to_markdown(found))
        if as_json:
            print_json(found.to_json())
        print_comparison(found, _stderr() if as_json else Console())
        sys.exit(found.exit_code)


@app.command(epilog="Example:\n\n`exporter plan ./my-model --target mobile --data reviews.jsonl`")
def plan(
    model: Annotated[str, typer.Argument(help="As for `export`.")],
    target: Target_ = "mobile",
    data: Data_ = None,
    task: Task_ = None,
    recipe: Recipe_ = None,
    column: Column_ = None,
    seed: Seed_ = None,
    allow_pickle: Pickle_ = False,
    trust_remote_code: Remote_ = False,
    as_json: Json_ = False,
    debug: Debug_ = False,
) -> None:
    """Say what `export` would do, and why, without doing it."""
    with reporting_errors(debug, as_json):
        from exporter.planning import plan as run

        made = run(
            model,
            target=target,
            data=data,
            task=task,
            recipe=recipe,
            columns=_columns(column),
            seed=seed,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
        )
        if as_json:
            print_json(made.to_json())
        else:
            Console().print(made.to_text(), markup=False, highlight=False, soft_wrap=True)


@app.command(
    epilog="Examples:\n\n`exporter targets`\n\n`exporter targets mobile`\n\n"
    "`exporter targets --schema > target.schema.json`"
)
def targets(
    name: Annotated[str | None, typer.Argument(help="Show one profile, defaults resolved.")] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of profiles, for editors.")
    ] = False,
    recipe_schema: Annotated[
        bool, typer.Option("--recipe-schema", help="Print the JSON Schema of recipe files.")
    ] = False,
    as_json: Json_ = False,
    debug: Debug_ = False,
) -> None:
    """List the target profiles, or show one."""
    with reporting_errors(debug, as_json):
        from exporter.recipe import Recipe
        from exporter.target import Target, load_target, target_names

        if schema or recipe_schema:
            print_json((Target if schema else Recipe).model_json_schema())
        elif name is not None:
            profile = load_target(name)
            if as_json:
                print_json(profile.model_dump(mode="json"))
            else:
                from exporter.toml import to_toml

                sys.stdout.write(to_toml(profile.model_dump(mode="json", exclude_none=True)))
        else:
            profiles = [load_target(known) for known in target_names()]
            if as_json:
                print_json([p.model_dump(mode="json") for p in profiles])
            else:
                for p in profiles:
                    typer.echo(f"{p.name:<12} {p.description}")


def _columns(pairs: list[str] | None) -> dict[str, str]:
    columns = {}
    for pair in pairs or []:
        canonical, sign, own = pair.partition("=")
        if not (sign and canonical and own):
            raise InputError(
                "--column", "must be canonical=yours", got=pair, remedy="such as text=review."
            )
        columns[canonical] = own
    return columns


def _finish(result: Any, as_json: bool) -> None:
    from exporter.report.terminal import print_summary

    if as_json:
        print_json(result.report.to_json())
        console = _stderr()
    else:
        console = Console()
    print_summary(result.report, console, artifact=result.directory)
    sys.exit(result.exit_code)


def _stderr() -> Console:
    return Console(stderr=True)


def main() -> None:
    """Entry point of the `exporter` command."""
    try:
        app(prog_name="exporter")
    except KeyboardInterrupt:
        typer.echo("error: exporter: stopped; run it again.", err=True)
        sys.exit(EXIT_USAGE)
