"""The command line: parse, call, print, exit code. Every decision is made elsewhere."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer
from typer.exceptions import TyperException

from exporter.cli import making  # isort: skip  (the order of commands in --help)
from exporter.cli import artifacts, devices, importance, recovery
from exporter.cli.options import app
from exporter.errors import EXIT_USAGE, InputError, Interrupted
from exporter.exits import fail, settle

__all__ = ["app", "artifacts", "devices", "importance", "main", "making", "recovery"]

_STOPPED = 130  # what Typer makes of Ctrl-C


def main() -> None:
    """Entry point of the `exporter` command."""
    try:
        code = _called("--json" in sys.argv)
    finally:
        settle()
    sys.exit(code)


def _called(as_json: bool) -> int:
    try:
        code = app(prog_name="exporter", standalone_mode=False)
    except TyperException as error:
        _misused(error, as_json)
    except (KeyboardInterrupt, typer.Abort):
        code = _STOPPED
    if code == _STOPPED:
        stopped = Interrupted("exporter", "stopped", remedy="run it again.")
        fail(stopped, stopped.exit_code, as_json)
    return code or 0


def _misused(error: TyperException, as_json: bool) -> NoReturn:
    """Say how the command is called, and as the last line what was wrong."""
    context = getattr(error, "ctx", None)
    name = "exporter" if context is None else context.command_path
    told = " ".join(error.format_message().split())
    if not told:  # called without anything: the help has been printed
        told = "a command is missing"
    elif context is not None:
        typer.echo(context.get_usage(), err=True)
    told = (told[0].lower() + told[1:]).rstrip(".?")
    fail(InputError(name, told, remedy=f"see {name} --help."), EXIT_USAGE, as_json)
