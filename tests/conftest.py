"""Artifacts that several test files look at, made once."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests import chain
from tests.signed import signed_classifier

# What devices fetched lies in the user's cache. Without it few are usable, so that tests of the
# chain take seconds; tests/devices/ uses the real one.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["EXPORTER_DEVICES"] = "/nonexistent/devices"


@pytest.fixture(scope="session")
def signed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `signed_classifier` made."""
    one = chain.RECIPE | {"candidates": chain.RECIPE["candidates"][:1]}
    target = chain.quick_target(
        recipe=one, accuracy_drop_points=30.0, disk_size_ratio=0.9, latency_ratio=1.0
    )
    return signed_classifier(tmp_path_factory.mktemp("verify"), target)


@pytest.fixture
def altered(signed: dict[str, Any], tmp_path: Path) -> Path:
    """A copy of the signed artifact, to alter."""
    return Path(shutil.copytree(signed["result"].directory, tmp_path / "copy"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Which devices the tests really ran on: a skipped one is no proof."""
    told: dict[str, Counter[str]] = {}
    for outcome in ("passed", "skipped", "failed"):
        for report in terminalreporter.stats.get(outcome, ()):
            path, _, _ = getattr(report, "nodeid", "").partition("::")
            if path.startswith("tests/devices/"):
                name = path.removeprefix("tests/devices/test_").removesuffix(".py")
                told.setdefault(name, Counter())[outcome] += 1
    if told:
        terminalreporter.section("devices")
        for name, counts in sorted(told.items()):
            each = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
            terminalreporter.write_line(f"{name:<14} {each}")
