"""The application, the options its commands share, and how they print."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from exporter.errors import InputError
from exporter.exits import print_json, settle

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
Slice_ = Annotated[
    list[str] | None,
    typer.Option(
        "--slice", help="Column whose values group the examples: the worst group is judged too."
    ),
]
Seed_ = Annotated[int | None, typer.Option("--seed", min=0, help="Seed of everything random.")]
Pickle_ = Annotated[
    bool, typer.Option("--allow-pickle", help="Load .bin weights: they can run code.")
]
Remote_ = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
]
Python_ = Annotated[
    str | None,
    typer.Option("--python", help="Interpreter on a device behind ssh or adb; default python3."),
]
Json_ = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Debug_ = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def columns_of(pairs: list[str] | None) -> dict[str, str]:
    """`canonical=yours` pairs as a mapping."""
    columns = {}
    for pair in pairs or []:
        canonical, sign, own = pair.partition("=")
        if not (sign and canonical and own):
            raise InputError(
                "--column", "must be canonical=yours", got=pair, remedy="such as text=review."
            )
        columns[canonical] = own
    return columns


def finish(result: Any, as_json: bool, *, page: Path | None = None) -> None:
    """Print what a run or a check came to, and leave with its exit code.

    Args:
        page: the report that was written of it, if one was.
    """
    from exporter.report.terminal import print_summary

    settle()
    if as_json:
        print_json(result.report.to_json())
        console = stderr()
    else:
        console = Console()
    print_summary(result.report, console, artifact=result.directory, page=page)
    sys.exit(result.exit_code)


def stderr() -> Console:
    """Where progress and messages go."""
    return Console(stderr=True)
