"""How a run looks while it works: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text

from exporter.progress import Bar, Progress

QUIET_S = 2.0  # a stage shorter than this leaves no line in a log
REPEAT_S = 15.0  # how often a long stage speaks up in a log


def progress_for(console: Console) -> Progress:
    """Bars when `console` is a terminal, plain lines otherwise."""
    return Bars(console) if console.is_terminal else Lines(console)


class Lines:
    """One line when a stage starts to take long, when it goes on, and when it ends."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def note(self, text: str) -> None:
        """Print a remark."""
        self._print(text)

    def stage(self, name: str, total: int | None = None) -> AbstractContextManager[Bar]:
        """Announce a stage and report on it until it ends."""
        return _line_stage(self, name, total)

    def _print(self, text: str) -> None:
        # Text as it is: a name may hold [brackets] or :colons:.
        self._console.print(Text(text), soft_wrap=True)


class _LineBar:
    def __init__(self, lines: Lines, name: str, total: int | None) -> None:
        self._lines, self._name, self._total = lines, name, total
        self._done = 0
        self._started = self._spoken = time.monotonic()

    def advance(self, steps: int = 1) -> None:
        self._done += steps
        now = time.monotonic()
        if now - self._spoken < REPEAT_S:
            return
        self._spoken = now
        if self._total and self._done:
            left = (now - self._started) / self._done * max(0, self._total - self._done)
            self._lines.note(f"  {self._name}: {self._done}/{self._total}, {left:.0f} s left")
        else:
            self._lines.note(f"  {self._name}: {self._done} so far")


@contextmanager
def _line_stage(lines: Lines, name: str, total: int | None) -> Iterator[Bar]:
    started = time.monotonic()
    lines.note(f"{name} ...")
    yield _LineBar(lines, name, total)
    took = time.monotonic() - started
    if took >= QUIET_S:
        lines.note(f"{name}: done in {took:.0f} s")


class Bars:
    """A live bar a stage, with the time it took and the time left."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def note(self, text: str) -> None:
        """Print a remark above the bars."""
        self._console.print(Text(text))

    def stage(self, name: str, total: int | None = None) -> AbstractContextManager[Bar]:
        """Show a bar until the stage ends; leave one line if it took long."""
        return self._stage(name, total)

    @contextmanager
    def _stage(self, name: str, total: int | None) -> Iterator[Bar]:
        started = time.monotonic()
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        known = columns if total is not None else (columns[0], columns[1], columns[4])
        with RichProgress(*known, console=self._console, transient=True) as shown:
            yield _RichBar(shown, shown.add_task(name, total=total))
        took = time.monotonic() - started
        if took >= QUIET_S:
            done = Text.assemble(("✓", "green"), f" {name} ", (f"{took:.0f} s", "dim"))
            self._console.print(done)


class _RichBar:
    def __init__(self, shown: RichProgress, task: TaskID) -> None:
        self._shown, self._task = shown, task

    def advance(self, steps: int = 1) -> None:
        self._shown.advance(self._task, steps)
