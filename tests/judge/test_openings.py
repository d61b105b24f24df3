"""Six openings of the models that differ are six observations, however quiet each one is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.budget import Budgets
from exporter.devices.conditions import Conditions
from exporter.devices.timing import Memory, Timing
from exporter.graph.model import OnnxModel
from exporter.judge.gate import judge_cost
from exporter.judge.measure import Measurements, measure
from exporter.judge.size import Size
from exporter.judge.verdict import INCONCLUSIVE, PASS
from exporter.target import Target, Workload, load_target

ROUNDS = 60
BLOCKS = (ROUNDS,) * 6
QUIET = (0.0,) * 6
# The ratio of each opening beside the typical one: 3 % between the slowest and the fastest.
APART = (0.015, -0.015, 0.012, -0.012, 0.014, -0.014)
WORKLOAD = Workload()


def _target() -> Target:
    """The limit is 2 % above the typical ratio of 0.5."""
    return load_target("cloud-cpu").model_copy(update={"budgets": Budgets(latency_ratio=0.51)})


def _times(openings: tuple[float, ...]) -> dict[str, dict[str, list[float]]]:
    rng = np.random.default_rng(0)
    reference = rng.lognormal(3, 0.2, sum(BLOCKS))
    logs = np.repeat(openings, BLOCKS) + rng.normal(0, 0.008, sum(BLOCKS))
    candidate = 0.5 * reference * np.exp(logs)
    return {"reference": {"run": list(reference)}, "candidate": {"run": list(candidate)}}


def _measurements(openings: tuple[float, ...]) -> Measurements:
    return Measurements(
        {"cpu": "a server", "cores": 2},
        WORKLOAD,
        1,
        _times(openings),
        Size(100, 90),
        Size(25, 18),
        Memory(300.0, 50.0),
        (Memory(200.0, 50.0),),
        looks=(sum(BLOCKS),),
        blocks=BLOCKS,
    )


def test_a_verdict_near_the_limit_waits_when_openings_differ() -> None:
    (quiet,) = judge_cost(_measurements(QUIET), _target(), "text-classification")
    assert quiet.verdict is PASS
    apart = _measurements(APART)
    (judgement,) = judge_cost(apart, _target(), "text-classification")
    assert judgement.verdict is INCONCLUSIVE
    # taken for one long opening, the same rounds would pass
    (once,) = judge_cost(replace(apart, blocks=()), _target(), "text-classification")
    assert once.verdict is PASS


def test_the_phases_that_reports_show_have_the_judged_interval() -> None:
    target, apart = _target(), _measurements(APART)
    (judgement,) = judge_cost(apart, target, "text-classification")
    answer = apart.phases(target.evidence)[0]
    assert (answer.ratio_low, answer.ratio_high) == (judgement.low, judgement.high)
    assert apart.latency_ratio.high > 0.51


@pytest.mark.parametrize(("openings", "more"), [(QUIET, False), (APART, True)])
def test_timing_goes_on_while_openings_differ(
    openings: tuple[float, ...], more: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    timing = Timing(_times(openings), WORKLOAD, BLOCKS, Conditions())
    asked = []

    def timed(models: Any, feeds: Any, workload: Any, *, go_on: Any, **options: Any) -> Timing:
        asked.append(go_on(timing))
        return timing

    monkeypatch.setattr("exporter.judge.measure.time_models", timed)
    monkeypatch.setattr("exporter.judge.measure.measure_size", lambda model: Size(1, 1))
    monkeypatch.setattr(
        "exporter.judge.measure.peak_memory", lambda *a, **options: Memory(1.0, 1.0)
    )
    model = OnnxModel(Path("none"))
    measure(
        model, model, {}, WORKLOAD, threads=1, rounds=ROUNDS, until=_target(), seconds=0.0
    )  # fmt: skip
    assert asked == [sum(BLOCKS) * (2 if more else 1)]
