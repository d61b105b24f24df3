"""What a run says at its end: one row a budget, then one sentence why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from exporter.report.document import Report
from exporter.report.rows import BudgetRow, budget_rows
from exporter.report.wording import VERDICT_MARKS, plain

STYLES = {"PASS": "bold green", "FAIL": "bold red", "INCONCLUSIVE": "bold yellow"}
_ASCII = str.maketrans(
    {"≤": "<=", "≥": ">=", "×": "x", "–": "-", "−": "-", "…": "...", "→": "->", "±": "+-"}
)
WIDE = 80
Said = Callable[..., Text]
# Rich's SIMPLE_HEAD with hyphens.
_ASCII_HEAD = box.Box("    \n    \n -- \n" + "    \n" * 5, ascii=True)


def print_summary(report: Report, console: Console, artifact: Path | None = None) -> None:
    """Print the verdict on `console`, and as the last line the sentence why.

    Args:
        artifact: the directory that ships.
    """
    rich, said = voice(console)
    console.print()
    console.print(heading(said, rich, report.verdict, report.title), soft_wrap=True)
    console.print(_table(budget_rows(report), rich, said, wide=console.width >= WIDE))
    console.print()
    if artifact is not None:
        console.print(said(f"artifact: {artifact}", "dim"), soft_wrap=True)
        if (artifact / "report.html").is_file():
            console.print(said(f"report:   {artifact / 'report.html'}", "dim"), soft_wrap=True)
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


def _table(rows: tuple[BudgetRow, ...], rich: bool, said: Said, *, wide: bool) -> Table:
    """At 80 columns everything is there; on less the two models' own figures are left out."""
    table = bare_table(rich)
    sides = ("reference", "candidate") if wide else ()
    table.add_column("budget", overflow="fold", min_width=13)
    for name in (*sides, "measured", "limit", "margin"):
        table.add_column(name, justify="right", overflow="fold", min_width=9 if wide else None)
    table.add_column("verdict", overflow="fold", min_width=12)
    for row in rows:
        models = (row.reference, row.candidate) if wide else ()
        figures = (*models, row.measured, row.limit, row.margin)
        table.add_row(
            said(row.title),
            *(said(short(figure)) for figure in figures),
            said(row.verdict, STYLES[row.verdict]),
        )
    return table


def short(figure: str) -> str:
    """A figure that leaves room for others beside it."""
    return figure.replace(" points", " pt").replace(" point", " pt")


def _ascii(text: str) -> str:
    return text.translate(_ASCII).encode("ascii", "backslashreplace").decode("ascii")
