"""What a run says at its end: one row a budget, then one sentence why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from exporter.report.devices import DeviceTable, device_table
from exporter.report.document import Report
from exporter.report.rows import BudgetRow, budget_rows
from exporter.report.wording import VERDICT_MARKS, plain

STYLES = {"PASS": "bold green", "FAIL": "bold red", "INCONCLUSIVE": "bold yellow"}
_ASCII = str.maketrans(
    {"≤": "<=", "≥": ">=", "×": "x", "–": "-", "−": "-", "…": "...", "→": "->", "±": "+-"}
)
WIDE = 80
TITLE = 13  # columns that a budget's name needs at least
Said = Callable[..., Text]
# Rich's SIMPLE_HEAD with hyphens.
_ASCII_HEAD = box.Box("    \n    \n -- \n" + "    \n" * 5, ascii=True)


def print_summary(
    report: Report, console: Console, artifact: Path | None = None, page: Path | None = None
) -> None:
    """Print the verdict on `console`, and as the last line the sentence why.

    Args:
        artifact: the directory that ships.
        page: the same for a browser.
    """
    rich, said = voice(console)
    console.print()
    console.print(heading(said, rich, report.verdict, report.title), soft_wrap=True)
    console.print(_table(budget_rows(report), rich, said, width=console.width))
    if any(reading.get("status") == "ran" for reading in report.devices):
        console.print()
        print_devices(report.devices, console, rich, said)
    console.print()
    if artifact is not None:
        console.print(said(f"artifact: {artifact}", "dim"), soft_wrap=True)
    if page is not None:
        console.print(said(f"report: {page}", "dim"), soft_wrap=True)
    console.print(said(report.summary), soft_wrap=not console.is_terminal)


def voice(console: Console) -> tuple[bool, Said]:
    """Whether `console` takes colours and signs, and what makes a text fit for it.

    Colours on a terminal, plain ASCII in logs and pipes; text of others is never read as markup.
    """
    rich = console.is_terminal and console.encoding.lower().startswith("utf")

    def said(text: str, style: str = "") -> Text:
        clean = plain(text)
        return Text(clean if rich else _ascii(clean), style=style if rich else "")

    return rich, said


def heading(said: Said, rich: bool, verdict: str, title: str) -> Text:
    """The verdict and what it is about."""
    mark = f"{VERDICT_MARKS[verdict]} " if rich else ""
    return Text.assemble(said(f"{mark}{verdict}", STYLES[verdict]), "  ", said(title, "bold"))


def bare_table(rich: bool) -> Table:
    """An empty table without a frame, whose head is underlined."""
    return Table(
        box=box.SIMPLE_HEAD if rich else _ASCII_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=0,
        header_style="dim" if rich else "",
    )


def print_devices(
    readings: Sequence[Mapping[str, Any]], console: Console, rich: bool, said: Said
) -> None:
    """Print device × metric, and what else there is to say of each device.

    Devices that do not fit beside each other stand below each other.
    """
    found = device_table(readings)
    for columns in _side_by_side(found, console.width):
        table = bare_table(rich)
        table.add_column("on devices", overflow="fold")
        for i in columns:
            table.add_column(said(found.devices[i]), justify="right", overflow="fold")
        for metric, cells in found.rows:
            table.add_row(said(metric), *(said(cells[i]) for i in columns))
        console.print(table)
        if columns[-1] + 1 < len(found.devices):
            console.print()
    for name, note in found.notes:
        console.print(said(f"{name}: {note}", "dim"), soft_wrap=not console.is_terminal)


def _side_by_side(table: DeviceTable, width: int) -> list[list[int]]:
    """The devices in groups, each no wider than `width` unless it is of one device."""
    first = max(len(metric) for metric, _ in table.rows)
    groups: list[list[int]] = []
    left = 0
    for i, name in enumerate(table.devices):
        needed = max(len(name), *(len(cells[i]) for _, cells in table.rows)) + 1
        if not groups or needed > left:
            groups.append([])
            left = width - first
        groups[-1].append(i)
        left -= needed
    return groups


def _table(rows: tuple[BudgetRow, ...], rich: bool, said: Said, *, width: int) -> Table:
    """At 80 columns everything is there; on less the two models' own figures are left out.

    Titles fold, and figures where there is no other way; a verdict is never cut.
    """
    sides = ("reference", "candidate")
    heads = (*sides, "measured", "limit", "margin")
    cells = [
        [
            said(short(f))
            for f in (row.reference, row.candidate, row.measured, row.limit, row.margin)
        ]
        for row in rows
    ]
    needed = [
        max(len(head), *(cell.cell_len for cell in column))
        for head, *column in zip(heads, *cells, strict=True)
    ]
    verdict = max((len(row.verdict) for row in rows), default=0) + len(heads) + 1
    first = 0 if width >= WIDE and sum(needed) + verdict + TITLE <= width else len(sides)
    fits = sum(needed[first:]) + verdict + TITLE <= width
    table = bare_table(rich)
    table.add_column("budget", overflow="fold")
    for name in heads[first:]:
        table.add_column(name, justify="right", overflow="fold", no_wrap=fits)
    table.add_column("verdict", no_wrap=True)
    for row, texts in zip(rows, cells, strict=True):
        nats = ", nats" if row.limit.endswith(" nats") else ""
        table.add_row(
            said(row.title + nats),
            *texts[first:],
            said(row.verdict, STYLES[row.verdict]),
        )
    return table


def short(figure: str) -> str:
    """A figure that leaves room for others beside it."""
    return figure.replace(" points", " pt").replace(" point", " pt").removesuffix(" nats")


def _ascii(text: str) -> str:
    return text.translate(_ASCII).encode("ascii", "backslashreplace").decode("ascii")
