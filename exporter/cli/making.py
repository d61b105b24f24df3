"""Commands that make an artifact, or say how it would be made: export, plan, targets."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Annotated

import typer

from exporter.cli.options import (
    Column_,
    Data_,
    Debug_,
    Json_,
    Pickle_,
    Recipe_,
    Remote_,
    Seed_,
    Slice_,
    Target_,
    Task_,
    app,
    columns_of,
    finish,
    stderr,
)
from exporter.exits import print_json, reporting_errors


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
        Path | None, typer.Option("--out", "-o", help="Default: `dist/MODEL-TARGET`.")
    ] = None,
    column: Column_ = None,
    slice_: Slice_ = None,
    seed: Seed_ = None,
    seeds: Annotated[
        int,
        typer.Option(
            "--seeds", min=1, max=100, help="Make the candidate that ships with so many seeds."
        ),
    ] = 1,
    fresh: Annotated[bool, typer.Option("--fresh", help="Redo finished stages.")] = False,
    examples: Annotated[
        bool,
        typer.Option(
            "--examples/--no-examples", help="Whether the report may quote test examples."
        ),
    ] = True,
    devices: Annotated[
        bool,
        typer.Option(
            "--devices/--no-devices", help="Whether the profile's devices are asked, where usable."
        ),
    ] = True,
    allow_pickle: Pickle_ = False,
    trust_remote_code: Remote_ = False,
    key: Annotated[
        Path | None,
        typer.Option("--key", help="Private Ed25519 key (PEM) that signs the artifact."),
    ] = None,
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
            columns=columns_of(column),
            slices=slice_ or (),
            show_examples=examples,
            seed=seed,
            seeds=seeds,
            fresh=fresh,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
            key=key,
            devices=devices,
            progress=progress_for(stderr()),
        )
        finish(result, as_json, page=result.directory / "report.html")


@app.command(epilog="Example:\n\n`exporter plan ./my-model --target mobile --data reviews.jsonl`")
def plan(
    model: Annotated[str, typer.Argument(help="As for `export`.")],
    target: Target_ = "mobile",
    data: Data_ = None,
    task: Task_ = None,
    recipe: Recipe_ = None,
    column: Column_ = None,
    slice_: Slice_ = None,
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
            columns=columns_of(column),
            slices=slice_ or (),
            seed=seed,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
        )
        if as_json:
            print_json(made.to_json())
        else:
            typer.echo(made.to_text())


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
                    typer.echo(
                        textwrap.fill(
                            f"{p.name:<12} {p.description}", 79, subsequent_indent=" " * 13
                        )
                    )
