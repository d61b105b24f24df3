"""Commands about devices: which there are, how to get them, and one run on one of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from exporter.cli.options import Debug_, Json_, Python_, app, stderr
from exporter.exits import print_json, reporting_errors

devices = typer.Typer(
    invoke_without_command=True,
    help="List the devices a model can be checked on, or install what they need.",
    epilog="Examples:\n\n`exporter devices`\n\n`exporter devices install arm64 wasm`",
)
app.add_typer(devices, name="devices")


@devices.callback()
def list_devices(context: typer.Context, as_json: Json_ = False, debug: Debug_ = False) -> None:
    """List the devices a model can be checked on, or install what they need."""
    if context.invoked_subcommand is not None:
        return
    with reporting_errors(debug, as_json):
        from exporter.devices.listing import as_text, listed

        rows = listed()
        if as_json:
            print_json([row.to_json() for row in rows])
        else:
            typer.echo(as_text(rows))


@devices.command(
    epilog="Examples:\n\n`exporter devices install`\n\n`exporter devices install arm64`"
)
def install(
    names: Annotated[
        list[str] | None, typer.Argument(help="Kinds, such as arm64; none: all of them.")
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", "-t", help="Those that a profile lists.")
    ] = None,
    debug: Debug_ = False,
) -> None:
    """Fetch what devices need and can be had without root, into the user's cache."""
    with reporting_errors(debug, False):
        from exporter.devices.listing import install as run
        from exporter.display import progress_for
        from exporter.target import load_target

        wanted = list(names or [])
        if target is not None:
            wanted += [entry.name for entry in load_target(target).devices]
            if not wanted:
                typer.echo(f"{target} lists no devices")
                return
        told, complete = run(wanted, progress_for(stderr()))
        typer.echo(told)
        sys.exit(0 if complete else 2)


@app.command(
    epilog="Examples:\n\n`exporter run dist/code_lm-mobile --on arm64:cortex-a76`\n\n"
    "`exporter run dist/code_lm-mobile --on ssh://pi@raspberrypi.local --input prompt.txt`"
)
def run(
    artifact: Annotated[Path, typer.Argument(help="The directory that `export` made.")],
    on: Annotated[
        str, typer.Option("--on", help="Device, as `exporter devices` lists it.")
    ] = "local",
    input_file: Annotated[
        Path | None,
        typer.Option("--input", "-i", help="Text, picture, .json or .jsonl rows, or .npz feeds."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, max=1000, help="Runs for the cost.")] = 3,
    python: Python_ = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds it may take.")] = 900,
    as_json: Json_ = False,
    debug: Debug_ = False,
) -> None:
    """Run ARTIFACT once on a device, and print what it answers and what that costs there."""
    with reporting_errors(debug, as_json):
        from exporter.display import progress_for
        from exporter.report.devices import run_to_text
        from exporter.running import run as start

        found = start(
            artifact,
            on=on,
            input_file=input_file,
            repeats=repeats,
            python=python,
            timeout_s=timeout,
            progress=progress_for(stderr()),
        )
        if as_json:
            print_json(found.to_json())
        else:
            typer.echo(run_to_text(found.to_json()))
