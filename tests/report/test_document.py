"""The report as data survives a round trip, and refuses what it does not understand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from exporter.errors import ArtifactError
from exporter.report.document import Phase, Report
from exporter.report.json import read_report, to_json_text
from tests.report import samples


@pytest.mark.parametrize("make", [samples.passing, samples.failing, samples.language_model])
def test_round_trip_through_a_file(make: object, tmp_path: Path) -> None:
    report = make()  # type: ignore[operator]
    path = tmp_path / "report.json"
    path.write_text(to_json_text(report), encoding="utf-8")
    assert read_report(path) == Report.from_json(report.to_json())
    assert read_report(path).to_json() == report.to_json()
    assert read_report(path).phases == report.phases


def test_numbers_that_are_none_become_null() -> None:
    report = replace(
        samples.passing(),
        phases=(Phase("answer", math.nan, math.inf, np.float64(2.0), ratio=-math.inf),),
        audit={"loss": np.float32("nan"), "count": np.int64(3)},
    )
    data = json.loads(to_json_text(report))  # NaN would be refused by allow_nan=False
    assert data["phases"][0]["reference_p50"] is None
    assert data["phases"][0]["reference_p95"] is None
    assert data["phases"][0]["candidate_p50"] == 2.0
    assert data["audit"] == {"loss": None, "count": 3}
    assert Report.from_json(data).phases[0].ratio is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 99}, "schema"),
        ({"verdict": "MAYBE"}, "verdict"),
        ({"judgements": 3}, "judgements"),
        ({"phases": [{"unit": "ms"}]}, "phases.0.name"),
    ],
)
def test_malformed_reports_are_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(ArtifactError, match=said):
        Report.from_json({**samples.passing().to_json(), **change})


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="must be a report"):
        read_report(tmp_path / "report.json")
    (tmp_path / "report.json").write_text("{", encoding="utf-8")
    with pytest.raises(ArtifactError, match="must be a report"):
        read_report(tmp_path / "report.json")
    (tmp_path / "report.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ArtifactError, match="schema"):
        read_report(tmp_path / "report.json")


def test_every_field_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
    report = samples.passing().to_json()
    names = {*report, *report["phases"][0], *report["candidates"][0], *report["observations"][0]}
    names |= set(report["judgements"][0])
    assert {name for name in names if f"`{name}`" not in text} == set()
