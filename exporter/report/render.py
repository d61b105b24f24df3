"""All files that a report consists of."""

from __future__ import annotations

from exporter.report.document import Report
from exporter.report.html import to_html
from exporter.report.json import to_json_text
from exporter.report.junit import to_junit
from exporter.report.markdown import to_markdown
from exporter.report.model_card import to_model_card


def render(report: Report) -> dict[str, str]:
    """File name -> text."""
    return {
        "report.json": to_json_text(report),
        "report.html": to_html(report),
        "report.md": to_markdown(report),
        "junit.xml": to_junit(report),
        "README.md": to_model_card(report),
    }
