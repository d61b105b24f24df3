"""How a command ends: its result or one error message, and the exit code."""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import typer

from exporter.errors import EXIT_TOOL, ExporterError, Interrupted, OutputError


def print_json(value: Any) -> None:
    """Print a value as JSON on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def refuse_lost(path: Path | None) -> None:
    """Refuse, before any work is done, a document that could not be written in the end.

    Raises:
        OutputError: its directory does not exist, or it is a directory itself.
    """
    if path is None:
        return
    if path.is_dir():
        raise OutputError(str(path), "must be a file, got a directory", remedy="name a file in it.")
    if not path.parent.is_dir():
        raise OutputError(
            str(path), "its directory does not exist", remedy=f"create {path.parent} first."
        )


def write_text(path: Path, text: str) -> None:
    """Write a document where the user asked for it.

    Raises:
        OutputError: it cannot be written there.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(
            str(path), "cannot be written", got=error.strerror, remedy="choose another file."
        ) from error


@contextmanager
def reporting_errors(debug: bool, as_json: bool) -> Iterator[None]:
    """Turn every error into one message and its exit code; keep libraries quiet."""
    if not debug:
        _quiet_libraries()
    signal.signal(signal.SIGTERM, _terminated)
    try:
        yield
    except KeyboardInterrupt:
        if debug:
            raise
        stopped = Interrupted(
            "exporter", "stopped", remedy="finished stages are kept: run it again to go on."
        )
        fail(stopped, stopped.exit_code, as_json)
    except ExporterError as error:
        if debug:
            raise
        fail(error, error.exit_code, as_json)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_TOOL)
    except Exception as error:
        if debug:
            raise
        first = (str(error).strip().splitlines() or [""])[0][:300]
        text = f"{type(error).__name__}: {first}"
        fail(
            f"exporter failed: {text}; run again with --debug for the traceback.",
            EXIT_TOOL,
            as_json,
        )


def fail(error: object, code: int, as_json: bool) -> NoReturn:
    """End with an error: its message as the last line, as JSON too if that was asked for."""
    settle()
    if as_json:
        kind = type(error).__name__ if isinstance(error, Exception) else "InternalError"
        print_json({"error": str(error), "kind": kind, "exit_code": code})
    typer.echo(f"error: {error}", err=True)
    sys.exit(code)


def settle() -> None:
    """Let a Ctrl-C change nothing from here on: the outcome is settled, its code is what counts.

    Python takes its handlers back while it ends, which takes a second where torch is loaded; a
    Ctrl-C then would end in death by the signal, as if nothing had come of the run.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whoever must end it at once still can


def _terminated(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _quiet_libraries() -> None:
    warnings.filterwarnings("ignore")
    for name, value in (
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("HF_DATASETS_DISABLE_PROGRESS_BARS", "1"),
        ("HF_HUB_DISABLE_TELEMETRY", "1"),
        ("ORT_DISABLE_TELEMETRY", "1"),
        ("TOKENIZERS_PARALLELISM", "false"),
        ("TQDM_DISABLE", "1"),
        ("PYTHONWARNINGS", "ignore"),
        ("TORCH_CPP_LOG_LEVEL", "ERROR"),
        # Threads that spin while they wait cost a tenth less when alone, and made training ten
        # times slower beside another process on the same cores.
        ("OMP_WAIT_POLICY", "PASSIVE"),
    ):
        os.environ.setdefault(name, value)
    import logging

    logging.getLogger().setLevel(logging.ERROR)
