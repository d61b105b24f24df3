"""Killed anywhere and run again: the same artifact, and no finished stage paid for twice."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.toml import to_toml
from tests import chain, tiny

# One candidate that goes through every stage, so that no timing decides what ships.
RECIPE = {
    "calibration_examples": 16,
    "candidates": [
        {
            "name": "all",
            "quantization": "static-int8",
            "pruning": {"ffn": 0.5, "examples": 8},
            "fine_tune": {**chain.FINE_TUNE, "steps": 30, "evaluate_every": 5},
        }
    ],
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("resume")
    target = chain.quick_target(recipe=RECIPE, disk_size_ratio=0.9)
    profile = root / "quick.toml"
    profile.write_text(to_toml(target.model_dump(mode="json", exclude_none=True)))
    paths = {
        "root": root,
        "model": tiny.checkpoint("bert", root / "bert"),
        "data": chain.text_data(root / "rows.jsonl"),
        "profile": profile,
    }
    done = _start(paths, root / "straight").communicate()[1]
    assert (root / "straight" / "out" / "manifest.json").is_file(), done
    return paths


def _start(work: dict[str, Path], place: Path) -> subprocess.Popen[str]:
    place.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "exporter", "export", work["model"], "-d", work["data"],
         "-t", work["profile"], "-o", place / "out"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "EXPORTER_CACHE": str(place / "cache")},
    )  # fmt: skip


def _content(out: Path) -> dict[str, str]:
    """Hashes of what seeds decide: everything that ships but measurements and their reports."""
    reports = {"report.json", "report.html", "report.md", "junit.xml", "README.md"}
    # the bill holds the hash of session.json
    measured = {"manifest.json", "measurements.json", "sbom.cdx.json", *reports}
    return {
        p.relative_to(out).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(out.rglob("*"))
        if p.is_file() and p.name not in measured and p.name != "session.json"
    }


def _killed_at(work: dict[str, Path], place: Path, words: str) -> None:
    process = _start(work, place)
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if words in line:
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    assert process.returncode == -signal.SIGKILL, "".join(said)
    process.stderr.close()
    assert not (place / "out").exists()


def _killed_then_finished(work: dict[str, Path], place: Path, words: str) -> str:
    _killed_at(work, place, words)
    again = _start(work, place).communicate()[1]
    assert _content(place / "out") == _content(work["root"] / "straight" / "out"), again
    return again


def test_killed_while_fine_tuning(work: dict[str, Path], tmp_path: Path) -> None:
    again = _killed_then_finished(work, tmp_path, "all: fine-tune")
    # what was finished before the kill is not done again
    assert "reference: export" not in again
    assert "score importance" not in again
    assert "all: fine-tune" in again


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "prepare train data",
        "reference: export",
        "reference: parity",
        "score importance",
        "reference, trained as long: fine-tune",
        "all: export",
        "quantize to static-int8",
        "all: score development data",
        "all: weigh and measure memory",
        "prepare test data",
        "all: score test data",
    ],
)
def test_killed_at_each_stage(work: dict[str, Path], tmp_path: Path, words: str) -> None:
    _killed_then_finished(work, tmp_path, words)
