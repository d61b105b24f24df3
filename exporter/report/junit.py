"""junit.xml: one test case a budget, for the systems that show test results."""

from __future__ import annotations

from xml.etree import ElementTree

from exporter.report.document import Report
from exporter.report.rows import BudgetRow, budget_rows
from exporter.report.wording import plain


def to_junit(report: Report) -> str:
    """JUnit XML; what failed or stayed open is a <failure> whose type is the verdict."""
    rows = budget_rows(report)
    broken = sum(row.verdict != "PASS" for row in rows)
    counts = {"tests": str(len(rows)), "failures": str(broken), "errors": "0", "skipped": "0"}
    root = ElementTree.Element("testsuites", {"name": "exporter", **counts})
    suite = ElementTree.SubElement(root, "testsuite", {"name": plain(report.title), **counts})
    facts = ElementTree.SubElement(suite, "properties")
    for name, value in (
        ("verdict", report.verdict),
        ("summary", report.summary),
        ("seed", report.seed),
        ("command", report.command),
    ):
        ElementTree.SubElement(facts, "property", name=name, value=plain(value))
    for row in rows:
        case = ElementTree.SubElement(
            suite, "testcase", classname=f"exporter.{plain(report.title)}", name=row.metric
        )
        if row.verdict != "PASS":
            failure = ElementTree.SubElement(
                case,
                "failure",
                type=row.verdict,
                message=f"{row.title} {row.measured}, allowed {row.limit}",
            )
            failure.text = _detail(row)
        else:
            ElementTree.SubElement(case, "system-out").text = _detail(row)
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _detail(row: BudgetRow) -> str:
    interval = f" ({row.interval})" if row.interval else ""
    return (
        f"measured {row.measured}{interval}, allowed {row.limit}, margin {row.margin}; "
        f"reference {row.reference}, candidate {row.candidate}. {row.reason}"
    )
