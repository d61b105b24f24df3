"""What `pip install .` gives: the profiles and the report's templates come with the wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_an_installed_wheel_works_from_anywhere(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        names = archive.namelist()
    for name in (
        "exporter/_targets/mobile.toml",
        "exporter/report/templates/report.html",
        "exporter/ship/templates/run_text_generation_genai.py",
        "exporter/devices/runner.py",
        "exporter/devices/board_init.sh",
        "exporter/devices/web/package-lock.json",
        "exporter/devices/web/runner.mjs",
        "exporter/devices/count.c",
        "exporter/devices/requirements-arm64.txt",
    ):
        assert name in names
    assert not [n for n in names if n.startswith(("tests/", "sample_models/"))]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = "import exporter, sys; print(exporter.__file__); print(exporter.target_names())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    where, targets = done.stdout.splitlines()
    assert where.startswith(str(site))
    assert targets == "['cloud-cpu', 'edge', 'mobile']"
