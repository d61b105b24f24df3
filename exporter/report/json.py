"""report.json: the report for machines; docs/report.md describes it."""

from __future__ import annotations

import json
from pathlib import Path

from exporter.errors import ArtifactError
from exporter.report.document import Report


def to_json_text(report: Report) -> str:
    """The report as indented JSON, ending in a newline."""
    return json.dumps(report.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_report(path: Path) -> Report:
    """The report in a report.json.

    Raises:
        ArtifactError: missing, no JSON, or of another schema.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(
            str(path), "must be a report", got=str(error), remedy="export again."
        ) from error
    return Report.from_json(data)
