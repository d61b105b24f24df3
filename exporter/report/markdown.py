"""report.md: the report for pull requests and chat."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from exporter.report.devices import device_table
from exporter.report.document import Report
from exporter.report.rows import budget_rows
from exporter.report.support import LISTS, support_rows
from exporter.report.wording import VERDICT_MARKS, measured, number, plain, with_unit

# Whatever Markdown or HTML could read as markup; a backslash disarms it in GitHub's dialect.
_MARKUP = re.compile(r"([\\`*_{}\[\]<>()#+!|~&@:])")


def to_markdown(report: Report) -> str:
    """A heading, the sentence why, the table of budgets and the candidates."""
    mark = VERDICT_MARKS[report.verdict]
    lines = [f"# {mark} {report.verdict}: {escaped(report.title)}", "", escaped(report.summary), ""]
    lines += table(
        ("Budget", "Reference", "Candidate", "Measured", "Limit", "Margin", "Verdict"),
        [
            (
                row.title,
                row.reference,
                row.candidate,
                f"{row.measured} ({row.interval})" if row.interval else row.measured,
                row.limit,
                row.margin,
                f"{VERDICT_MARKS[row.verdict]} {row.verdict}",
            )
            for row in budget_rows(report)
        ],
    )
    if report.phases:
        lines += ["", "## Latency", ""]
        lines += table(
            ("Phase", "Reference p50", "p95", "Candidate p50", "p95", "Ratio"),
            [
                (
                    phase.name,
                    with_unit(phase.reference_p50, phase.unit),
                    with_unit(phase.reference_p95, phase.unit),
                    with_unit(phase.candidate_p50, phase.unit),
                    with_unit(phase.candidate_p95, phase.unit),
                    f"{with_unit(phase.ratio, '×')} ({number(phase.low)} to {number(phase.high)})",
                )
                for phase in report.phases
            ],
        )
    if report.devices:
        found = device_table(report.devices)
        lines += ["", "## Devices", ""]
        lines += table(
            ("Metric", *map(escaped, found.devices)),
            [(metric, *cells) for metric, cells in found.rows],
        )
        lines += ["", *(f"- {escaped(name)}: {escaped(note)}" for name, note in found.notes)]
    found_support = support_rows(report.support)
    if found_support:
        lines += ["", "## Runs where", ""]
        lines += table(("Where", "Runs", "Why"), [(r.where, r.runs, r.why) for r in found_support])
        if (report.support or {}).get("mobile"):
            lines += ["", escaped(LISTS)]
    if report.candidates:
        lines += ["", "## Candidates, on development data", ""]
        lines += table(
            ("Candidate", "Status", "Quality", "Latency", "Instructions", "Size", "Why"),
            [
                (
                    row.name,
                    row.status,
                    measured(row.quality_metric or "", row.quality),
                    with_unit(row.latency_ratio, "×"),
                    with_unit(row.instruction_ratio, "×"),
                    with_unit(row.size_ratio, "×"),
                    row.reason,
                )
                for row in report.candidates
            ],
        )
    if report.notes:
        lines += ["", "## Notes", "", *(f"- {escaped(note)}" for note in report.notes)]
    if report.command:
        lines += ["", "## Make it again", "", *fenced(report.command)]
    return "\n".join(lines) + "\n"


def fenced(command: str) -> list[str]:
    """The lines of a block of shell that no backticks in `command` can end."""
    longest = max((len(run) for run in re.findall("`+", command)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}sh", plain(command), fence]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table whose cells are escaped."""
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    return lines + [f"| {' | '.join(escaped(cell) for cell in row)} |" for row in rows]


def escaped(value: object) -> str:
    """Text of others as one line of Markdown that shows it and obeys none of it."""
    return _MARKUP.sub(r"\\\1", plain(value))
