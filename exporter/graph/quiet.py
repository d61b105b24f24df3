"""Keep what exporters print to themselves until it explains a failure."""

from __future__ import annotations

import io
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class Captured(io.StringIO):
    """What one thread wrote while it was kept quiet."""

    def tail(self, lines: int = 12) -> str:
        """The last lines that say something."""
        said = [line.rstrip() for line in self.getvalue().splitlines() if line.strip()]
        return "\n".join(said[-lines:])


class _Split:
    """A stream that catches what the quiet thread writes and passes on everyone else's.

    A progress bar is redrawn from another thread: it must keep its terminal.
    """

    def __init__(self, stream: TextIO, captured: Captured) -> None:
        self._stream = stream
        self._captured = captured
        self._quiet = threading.get_ident()

    def write(self, text: str) -> int:
        target = self._captured if threading.get_ident() == self._quiet else self._stream
        return target.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def quiet() -> Iterator[Captured]:
    """Silence prints, warnings, log records and bars of this thread; yields what they said."""
    captured = Captured()
    before = sys.stdout, sys.stderr, logging.root.manager.disable
    handler = logging.StreamHandler(captured)
    logging.disable(logging.WARNING)
    logging.getLogger().addHandler(handler)
    sys.stdout = _Split(sys.stdout, captured)
    sys.stderr = _Split(sys.stderr, captured)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield captured
    finally:
        sys.stdout, sys.stderr = before[0], before[1]
        logging.getLogger().removeHandler(handler)
        logging.disable(before[2])
