"""The command line: parse, call, print, exit code. Every decision is made elsewhere."""

from __future__ import annotations

import sys

import typer

from exporter.cli import making  # isort: skip  (the order of commands in --help)
from exporter.cli import artifacts
from exporter.cli.options import app
from exporter.errors import EXIT_USAGE

__all__ = ["app", "artifacts", "main", "making"]


def main() -> None:
    """Entry point of the `exporter` command."""
    try:
        app(prog_name="exporter")
    except KeyboardInterrupt:
        typer.echo("error: exporter: stopped; run it again.", err=True)
        sys.exit(EXIT_USAGE)
