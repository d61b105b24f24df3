"""A comparison for people: on the terminal, and as Markdown for a pull request."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from exporter.report.comparison import Comparison, Row, change_text, comparison_rows
from exporter.report.markdown import escaped, table
from exporter.report.terminal import STYLES, WIDE, Said, bare_table, heading, short, voice
from exporter.report.wording import VERDICT_MARKS


def comparison_to_markdown(comparison: Comparison) -> str:
    """A heading, the sentence why, the table of metrics, and what changed."""
    verdict = comparison.verdict.value
    lines = [
        f"# {VERDICT_MARKS[verdict]} {verdict}: {escaped(_title(comparison))}",
        "",
        escaped(comparison.summary),
        "",
        *table(
            ("Metric", "Old", "New", "Change", "Interval", "Allowed", "Verdict"),
            [
                (
                    *(row.title, row.old, row.new, row.change, row.interval, row.allowed),
                    f"{VERDICT_MARKS[row.verdict]} {row.verdict}",
                )
                for row in comparison_rows(comparison)
            ],
        ),
        "",
        "## What changed",
        "",
    ]
    if comparison.changes:
        lines += table(
            ("", "", "Old", "New"),
            [
                (change.section, change.name, change_text(change.old), change_text(change.new))
                for change in comparison.changes
            ],
        )
    else:
        lines.append("Nothing.")
    if comparison.notes:
        lines += ["", "## Notes", "", *(f"- {escaped(note)}" for note in comparison.notes)]
    return "\n".join(lines) + "\n"


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print verdict, metrics and changes, and as the last line the sentence why."""
    rich, said = voice(console)
    wide = console.width >= WIDE
    console.print()
    console.print(heading(said, rich, comparison.verdict.value, _title(comparison)), soft_wrap=True)
    console.print(_metrics(comparison_rows(comparison), rich, said, wide=wide))
    console.print()
    if comparison.changes:
        console.print(_changes(comparison, rich, said))
    else:
        console.print(said("Nothing changed in recipe, data or versions."))
    console.print()
    for note in comparison.notes:
        console.print(said(f"note: {note}", "dim"), soft_wrap=not console.is_terminal)
    console.print(said(comparison.summary), soft_wrap=not console.is_terminal)


def _title(comparison: Comparison) -> str:
    return f"{comparison.old.name} → {comparison.new.name}"


def _metrics(rows: tuple[Row, ...], rich: bool, said: Said, *, wide: bool) -> Table:
    """At 80 columns everything is there; on less the two artifacts' own figures are left out."""
    made = bare_table(rich)
    made.add_column("metric", overflow="fold")
    sides = ("old", "new") if wide else ()
    for name in (*sides, "change", "interval", "allowed"):
        made.add_column(name, justify="right", overflow="fold", no_wrap=name == "change")
    made.add_column("verdict", no_wrap=True)
    for row in rows:
        models = (row.old, row.new) if wide else ()
        figures = (*models, row.change, row.interval, row.allowed)
        made.add_row(
            said(row.title),
            *(said(short(figure)) for figure in figures),
            said(row.verdict, STYLES[row.verdict]),
        )
    return made


def _changes(comparison: Comparison, rich: bool, said: Said) -> Table:
    made = bare_table(rich)
    made.add_column("what changed", overflow="fold", min_width=20)
    for name in ("old", "new"):
        made.add_column(name, overflow="fold")
    for change in comparison.changes:
        made.add_row(
            said(f"{change.section}: {change.name}"),
            said(change_text(change.old)),
            said(change_text(change.new)),
        )
    return made
