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

_STYLES = {"PASS": "bold green", "FAIL": "bold red", "INCONCLUSIVE": "bold yellow"}
_ASCII = str.maketrans(
    {"≤": "<=", "≥": ">=", "×": "x", "–": "-", "−": "-", "…": "...", "→": "->", "±": "+-"}
)
WIDE = 80
# Rich's SIMPLE_HEAD with hyphens.
_ASCII_HEAD = box.Box("    \n    \n -- \n" + "    \n" * 5, ascii=True)


def print_summary(report: Report, console: Console, artifact: Path | None = None) -> None:
    """Print the verdict on `console`: colours on a terminal, plain ASCII in logs and pipes.

    Args:
        artifact: the directory that ships, named in the last line.
    """
    rich = console.is_terminal and console.encoding.lower().startswith("utf")

    def said(text: str, style: str = "") -> Text:
        """Text of others is never read as Rich markup."""
        clean = plain(text)
        return Text(clean if rich else _ascii(clean), style=style if rich else "")

    mark = f"{VERDICT_MARKS[report.verdict]} " if rich else ""
    heading = said(f"{mark}{report.verdict}", _STYLES[report.verdict])
    console.print()
    console.print(Text.assemble(heading, "  ", said(report.title, "bold")), soft_wrap=True)
    console.print(_table(budget_rows(report), rich, said, wide=console.width >= WIDE))
    console.print()
    console.print(said(report.summary), soft_wrap=not console.is_terminal)
    if artifact is not None:
        console.print(said(f"artifact: {artifact}", "dim"), soft_wrap=True)
        if (artifact / "report.html").is_file():
            console.print(said(f"report:   {artifact / 'report.html'}", "dim"), soft_wrap=True)


def _table(
    rows: tuple[BudgetRow, ...], rich: bool, said: Callable[..., Text], *, wide: bool
) -> Table:
    """At 80 columns everything is there; on less the two models' own figures are left out."""
    table = Table(
        box=box.SIMPLE_HEAD if rich else _ASCII_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=0,
        header_style="dim" if rich else "",
    )
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
            *(said(_short(figure)) for figure in figures),
            said(row.verdict, _STYLES[row.verdict]),
        )
    return table


def _short(figure: str) -> str:
    return figure.replace(" points", " pt").replace(" point", " pt")


def _ascii(text: str) -> str:
    return text.translate(_ASCII).encode("ascii", "backslashreplace").decode("ascii")
