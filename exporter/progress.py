"""How long work tells that it is alive: the seam between stages and whoever shows them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Bar(Protocol):
    """One running stage."""

    def advance(self, steps: int = 1) -> None:
        """Count `steps` more units of this stage as done."""


class Progress(Protocol):
    """Receives stages, their progress, and single remarks worth a line."""

    def stage(self, name: str, total: int | None = None) -> AbstractContextManager[Bar]:
        """Open the stage `name` of `total` units (None: unknown) as a context manager."""

    def note(self, text: str) -> None:
        """Say one line that the reader should see, such as a skipped step and its reason."""


class _SilentBar:
    def advance(self, steps: int = 1) -> None:
        """Nothing to show."""


class Silent:
    """Shows nothing; the default of the Python API."""

    def stage(self, name: str, total: int | None = None) -> AbstractContextManager[Bar]:
        return _silent_stage()

    def note(self, text: str) -> None:
        """Nothing to show."""


@contextmanager
def _silent_stage() -> Iterator[Bar]:
    yield _SilentBar()


class Prefixed:
    """Shows stages under a name in front, such as the candidate they work on."""

    def __init__(self, progress: Progress, prefix: str) -> None:
        self._progress, self._prefix = progress, prefix

    def stage(self, name: str, total: int | None = None) -> AbstractContextManager[Bar]:
        return self._progress.stage(f"{self._prefix}: {name}", total)

    def note(self, text: str) -> None:
        """Pass a remark on, under the prefix."""
        self._progress.note(f"{self._prefix}: {text}")
