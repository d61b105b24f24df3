"""Commands about finished artifacts: check, verify, compare, explain."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from exporter.cli.options import Debug_, Json_, Python_, app, finish, stderr
from exporter.exits import print_json, reporting_errors, write_text


@app.command(
    epilog="Examples:\n\n`exporter check dist/code_lm-mobile`\n\n"
    "`exporter check dist/code_lm-mobile --target edge --json`\n\n"
    "`exporter check dist/code_lm-mobile --on arm64:cortex-a53`"
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
    on: Annotated[
        list[str] | None,
        typer.Option(
            "--on", help="Device to ask, or `profile` for those of the profile. May repeat."
        ),
    ] = None,
    python: Python_ = None,
    as_json: Json_ = False,
    debug: Debug_ = False,
) -> None:
    """Judge a finished ARTIFACT again, here, now."""
    with reporting_errors(debug, as_json):
        from exporter.display import progress_for
        from exporter.recheck import check as run

        result = run(
            artifact,
            target=target,
            reference=reference,
            on=on or (),
            python=python,
            progress=progress_for(stderr()),
        )
        finish(result, as_json)


@app.command(
    epilog="Exit codes: **0** the artifact is what it claims to be, whatever its verdict, **1** it "
    "is not, **2** there is no artifact, or the key cannot be used.\n\n"
    "Examples:\n\n`exporter verify dist/code_lm-mobile`\n\n"
    "`exporter verify dist/code_lm-mobile --key public.pem --json`"
)
def verify(
    artifact: Annotated[Path, typer.Argument(help="The directory that `export` made.")],
    key: Annotated[
        Path | None,
        typer.Option("--key", help="Public Ed25519 key (PEM) that must have signed it."),
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", "-t", help="Profile it must be judged against.")
    ] = None,
    as_json: Json_ = False,
    debug: Debug_ = False,
) -> None:
    """Prove, offline, that an ARTIFACT is what it claims to be: files, verdicts, signature."""
    with reporting_errors(debug, as_json):
        from exporter.verifying import verify as run

        result = run(artifact, key=key, target=target)
        if as_json:
            print_json(result.to_json())
        else:
            typer.echo(result.to_text())
        sys.exit(result.exit_code)


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

        found = run(old, new, tolerance=tolerance, measure=measure, progress=progress_for(stderr()))
        if markdown is not None:
            write_text(markdown, comparison_to_markdown(found))
        if as_json:
            print_json(found.to_json())
        print_comparison(found, stderr() if as_json else Console())
        sys.exit(found.exit_code)


@app.command(
    epilog="Examples:\n\n`exporter explain dist/code_lm-mobile`\n\n"
    "`exporter explain dist/code_lm-mobile --html explained.html`"
)
def explain(
    artifact: Annotated[Path, typer.Argument(help="The directory that `export` made.")],
    html: Annotated[
        Path | None, typer.Option("--html", help="Draw it, too: one file that needs no other.")
    ] = None,
    as_json: Json_ = False,
    debug: Debug_ = False,
) -> None:
    """Say what was removed from the model in ARTIFACT, and what each removal cost."""
    with reporting_errors(debug, as_json):
        from exporter.explaining import explain as run
        from exporter.report.explanation_html import explanation_to_html
        from exporter.report.explanation_text import print_explanation

        found = run(artifact)
        if html is not None:
            write_text(html, explanation_to_html(found))
        if as_json:
            print_json(found.to_json())
        else:
            print_explanation(found, Console())
