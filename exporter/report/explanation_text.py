"""An explanation on a terminal: sentences, and a bar for what each part costs alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table

from exporter.report.explanation import Explanation, PartCost, Together
from exporter.report.explanation_words import TITLES
from exporter.report.terminal import WIDE, Said, heading, voice
from exporter.report.wording import ABSENT, number

LABEL = 30  # columns of the longest name that is shown whole
FIGURE = 10
_EIGHTHS = " ▏▎▍▌▋▊▉"


def print_explanation(told: Explanation, console: Console) -> None:
    """Print what was removed, what it cost, what made up for it, and last the verdict's reason."""
    rich, said = voice(console)
    console.print()
    console.print(heading(said, rich, told.verdict, told.title), soft_wrap=True)
    console.print(said(f"candidate {told.candidate}", "dim"), soft_wrap=True)
    for title, sentences in told.sections():
        console.print()
        console.print(said(title, "bold"))
        for sentence in sentences:
            console.print(said(sentence), soft_wrap=not console.is_terminal)
        if title == "removed" and told.costs:
            _print_costs(told, console, rich, said)
    console.print()
    console.print(said(told.summary), soft_wrap=not console.is_terminal)


def _print_costs(told: Explanation, console: Console, rich: bool, said: Said) -> None:
    """One bar a part, all on one scale; what is not a number has none."""
    unit = f", {told.unit}" if told.unit else ""
    largest = max((value for value in values_of(told) if value is not None), default=0.0)
    room = min(console.width, WIDE) - LABEL - FIGURE - 2
    for title, rows in pictured(told):
        console.print()
        console.print(said(f"{title}: {told.measure}{unit}", "dim"), soft_wrap=True)
        table = Table.grid(padding=(0, 1, 0, 0))
        table.add_column(width=LABEL, no_wrap=True, overflow="ellipsis" if rich else "crop")
        table.add_column(width=room, no_wrap=True)
        table.add_column(width=FIGURE, justify="right", no_wrap=True)
        for label, value in rows:
            drawn = _bar(value, largest, room, rich)
            figure = ABSENT if value is None else number(value)
            table.add_row(said(label), said(drawn, "cyan"), said(figure))
        console.print(table)


def pictured(told: Explanation) -> Iterator[tuple[str, list[tuple[str, float | None]]]]:
    """Each picture's title and rows: parts of one kind in one round, and then all of it."""
    several = told.rounds > 1
    for number_ in range(1, told.rounds + 1):
        head = f"round {number_}: " if several else ""
        own = [cost for cost in told.costs if cost.round == number_]
        for part, group in groupby(own, key=lambda cost: cost.part):
            costs = list(group)
            yield (
                f"{head}{_title(part, costs)}, alone",
                [(cost.label, cost.divergence) for cost in costs],
            )
        for whole in told.together:
            if whole.round == number_ and own:
                yield f"{head}all of it together", list(_whole(whole))


def values_of(told: Explanation) -> Iterator[float | None]:
    """Every value that is drawn."""
    for _, rows in pictured(told):
        for _, value in rows:
            yield value


def _title(part: str, costs: Sequence[PartCost]) -> str:
    title = TITLES.get(part, part)
    sizes = {(cost.before, cost.after) for cost in costs}
    before, after = sizes.pop() if len(sizes) == 1 else (None, None)
    if before is None or after is None:
        return title
    return f"{title} ({number(before)} → {number(after)})"


def _whole(whole: Together) -> Iterator[tuple[str, float | None]]:
    if whole.without is not None:
        yield "before compensation", whole.without
    yield ("after compensation" if whole.method else "before recovery"), whole.divergence


def _bar(value: float | None, largest: float, room: int, rich: bool) -> str:
    if value is None or value <= 0 or largest <= 0:
        return ""
    eighths = max(1, round(8 * room * value / largest))
    if not rich:
        return "#" * max(1, round(eighths / 8))
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
