"""`python -m sample_models code_lm [--size small|base]`: train if needed, print the directory."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from exporter.errors import ExporterError
from exporter.progress import Bar
from sample_models import SAMPLES


class _LineBar:
    """Says how far a stage is, at most every five seconds."""

    def __init__(self, name: str, total: int | None) -> None:
        self.name, self.total, self.done = name, total, 0
        self.began = self.spoke = time.monotonic()

    def advance(self, steps: int = 1) -> None:
        self.done += steps
        now = time.monotonic()
        if now - self.spoke < 5:
            return
        self.spoke = now
        left = ""
        if self.total:
            seconds = (now - self.began) / self.done * (self.total - self.done)
            left = f" of {self.total}, {seconds:.0f} s left"
        print(f"{self.name}: {self.done}{left}", file=sys.stderr, flush=True)


class Lines:
    """Progress as plain lines on stderr, so that stdout holds nothing but the result."""

    def stage(self, name: str, total: int | None = None) -> AbstractContextManager[Bar]:
        return _stage(name, total)

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


@contextmanager
def _stage(name: str, total: int | None) -> Iterator[Bar]:
    print(f"{name} ...", file=sys.stderr, flush=True)
    began = time.monotonic()
    yield _LineBar(name, total)
    print(f"{name}: done in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m sample_models", description=__doc__)
    parser.add_argument("name", choices=SAMPLES, help="which sample")
    parser.add_argument(
        "--size", choices=("small", "base"), help="of code_lm: about 2 or 10 million parameters"
    )
    options = parser.parse_args(arguments)
    if options.size and options.name != "code_lm":
        parser.error("--size is only for code_lm")
    sample = importlib.import_module(f"sample_models.{options.name}")
    try:
        directory = (
            sample.build(size=options.size or "small", progress=Lines())
            if options.name == "code_lm"
            else sample.build(progress=Lines())
        )
    except ExporterError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
