"""A progress that remembers what it was told, and can stop the work like Ctrl-C does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from exporter.progress import Bar


class Recorded:
    def __init__(self, stop_after: int | None = None) -> None:
        self.stages: list[str] = []
        self.notes: list[str] = []
        self.stop_after = stop_after
        self.steps = 0

    def stage(self, name: str, total: int | None = None) -> AbstractContextManager[Bar]:
        return self._stage(name)

    @contextmanager
    def _stage(self, name: str) -> Iterator[Bar]:
        self.stages.append(name)
        yield _Counting(self, "training" in name)

    def note(self, text: str) -> None:
        self.notes.append(text)


class _Counting:
    def __init__(self, owner: Recorded, counts: bool) -> None:
        self.owner, self.counts = owner, counts

    def advance(self, steps: int = 1) -> None:
        if self.counts:
            self.owner.steps += steps
            if self.owner.steps == self.owner.stop_after:
                raise KeyboardInterrupt
