"""When onnxruntime-web's times are taken: by a clock that only the runs of a model move."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from exporter.devices import web

SCRIPT = Path(__file__).with_name("warm_up.mjs")


def told(runs_ms: list[float]) -> dict[str, Any]:
    """What the runner tells of a model whose runs take these times, the last one over and over."""
    for lack in web.missing_node():
        pytest.skip(f"needs {lack.what}: {lack.remedy}")
    runner = (web.SCRIPTS / "runner.mjs").as_uri()
    command = [str(shutil.which("node")), str(SCRIPT), runner, json.dumps(runs_ms)]
    result: dict[str, Any] = json.loads(subprocess.check_output(command, timeout=60))
    assert "error" not in result, result
    return result


def test_a_model_that_is_compiled_while_it_runs_is_timed_when_that_is_done() -> None:
    result = told([60.0] * 30 + [20.0] * 12 + [2.0])
    assert result["times_ms"] == {"run": [2.0] * 3}
    assert result["facts"]["warm_up_steady"]
    assert result["facts"]["warm_up_runs"] > 30 + 12


def test_one_slow_run_among_fast_ones_ends_nothing() -> None:
    result = told([10.0] * 165 + [300.0] + [10.0])
    assert result["facts"] == {"warm_up_runs": 171, "warm_up_steady": True}


def test_a_short_model_gets_two_seconds() -> None:
    facts = told([0.5])["facts"]
    assert facts == {"warm_up_runs": 4000, "warm_up_steady": True}


@pytest.mark.parametrize(("run_ms", "runs"), [(9000.0, 1), (3000.0, 3), (500.0, 16)])
def test_a_long_model_is_not_run_for_minutes_and_that_is_told(run_ms: float, runs: int) -> None:
    result = told([run_ms])
    assert result["facts"] == {"warm_up_runs": runs, "warm_up_steady": False}
    assert result["times_ms"] == {"run": [run_ms] * 3}


def test_the_cpu_is_slowed_down_for_loading_and_the_timed_runs_only() -> None:
    result = told([9000.0])
    assert result["slowed"] == [[True, 0], [False, 0], [True, 9000], [False, 4 * 9000]]
