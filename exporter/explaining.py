"""Explain an artifact: what was removed from the model in it, and what each removal cost."""

from __future__ import annotations

from pathlib import Path

from exporter.artifact import MANIFEST, prove_file, read_artifact
from exporter.claims import REPORT
from exporter.errors import ArtifactError
from exporter.evidence import read_json, refusing
from exporter.report.document import Report
from exporter.report.explanation import Explanation, explanation


def explain(artifact: Path | str) -> Explanation:
    """What was removed, recovered and quantized on the way to a finished artifact.

    Only its report is read, and proved to be what the manifest says; `exporter.verify` proves all.

    Raises:
        ArtifactError: it is no artifact, or its report is damaged.
    """
    found = read_artifact(artifact)
    if REPORT not in found.manifest["files"]:
        raise ArtifactError(
            f"{artifact}/{MANIFEST}", f"must name {REPORT}", remedy="export it again."
        )
    prove_file(found, REPORT)
    report = Report.from_json(read_json(found, REPORT))
    with refusing(REPORT, "must hold facts that can be explained"):
        return explanation(report)
