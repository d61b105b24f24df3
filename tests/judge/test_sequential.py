"""The stopping rule and its interval: the error that is stated, at every look together."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.latency_simulation import (
    BETTER,
    all_blocks,
    autoregressive,
    bootstrap,
    decided,
    noises,
)
from exporter.budget import Budgets
from exporter.devices.conditions import Conditions
from exporter.errors import ArtifactError
from exporter.judge.conditions import remarks
from exporter.judge.gate import judge_cost
from exporter.judge.latency import reference_drift
from exporter.judge.measure import Measurements, measure
from exporter.judge.sequential import (
    LOOKS,
    log_ratio_bounds,
    look_confidence,
    next_look,
    paired_ratio,
)
from exporter.judge.verdict import FAIL, INCONCLUSIVE, PASS, Verdict, decide
from exporter.target import Target, load_target
from tests.devices.graphs import product
from tests.judge.test_gate import WORKLOAD
from tests.judge.test_gate import _measurements as recorded

FIRST, RELEASES = 30, 500
# 3.5 standard errors above the stated 5 %: a right gate is not called wrong once in 4,000 runs
ALLOWED = 0.05 + 3.5 * math.sqrt(0.05 * 0.95 / RELEASES)


def _target(limit: float, **evidence: float) -> Target:
    profile = load_target("cloud-cpu")
    changed = profile.evidence.model_copy(update=evidence)
    budgets = Budgets(latency_ratio=limit)
    return profile.model_copy(update={"budgets": budgets, "evidence": changed})


# the statistics


def test_the_looks_together_have_the_error_of_one() -> None:
    spent = [1 - look_confidence(0.95, look) for look in range(1, LOOKS + 1)]
    assert sum(spent) == pytest.approx(0.05)
    assert look_confidence(0.95, 0) == 0.95
    rounds, looks = 30, [30]
    while (following := next_look(rounds, len(looks))) is not None:
        rounds = following
        looks.append(rounds)
    assert looks == [30, 60, 120, 240, 480, 960]


@pytest.mark.parametrize("name", sorted(noises(FIRST)))
def test_a_release_at_the_limit_is_hardly_ever_decided(name: str) -> None:
    """Under noise that repeats, bursts, drifts, has heavy tails or comes with each opening."""
    logs = noises(FIRST)[name](RELEASES, np.random.default_rng(1))
    verdicts, taken = decided(logs, FIRST)
    assert (verdicts > 0).mean() <= ALLOWED
    assert (verdicts < 0).mean() <= ALLOWED
    assert taken.max() == FIRST * 2 ** (LOOKS - 1)
    # and one that is better is found out, with fewer rounds
    better, sooner = decided(logs + BETTER, FIRST)
    assert (better > 0).mean() > 0.95
    assert sooner.mean() < 0.25 * taken.mean()


def test_the_simulation_notices_an_interval_that_is_too_narrow() -> None:
    """A bootstrap over rounds, looked at as often, breaks the promise by far."""
    rng = np.random.default_rng(2)
    logs = 0.05 * autoregressive((60, sum(all_blocks(FIRST))), 0.8, rng)
    verdicts, _ = decided(logs, FIRST, bounds=bootstrap)
    assert (verdicts > 0).mean() > 0.2


def test_looking_often_without_sharing_the_error_breaks_the_promise() -> None:
    logs = noises(FIRST)["each opening 3 % off"](RELEASES, np.random.default_rng(3))
    at_each = 1 - 0.05 * LOOKS  # which look_confidence divides: 95 % at each look
    verdicts, _ = decided(logs, FIRST, confidence=at_each)
    assert (verdicts > 0).mean() > ALLOWED


def test_one_opening_of_the_models_cannot_narrow_beyond_what_openings_differ() -> None:
    rng = np.random.default_rng(4)
    blocks = [50] * 6
    openings = np.repeat(rng.normal(0, 0.03, (400, 6)), 50, axis=1)
    logs = openings + rng.normal(0, 0.005, (400, 300))
    estimate, half = log_ratio_bounds(logs, confidence=0.95, blocks=blocks)
    assert np.mean(estimate - half > 0) <= 0.05 + 3.5 * math.sqrt(0.05 * 0.95 / 400)
    _, quiet = log_ratio_bounds(logs - openings, confidence=0.95, blocks=blocks)
    assert np.median(half) > 10 * np.median(quiet)


def test_the_ratio_covers_the_truth_through_bursts_on_both_models() -> None:
    rng = np.random.default_rng(9)
    truth, releases, rounds = 0.6, 800, 30
    above = below = 0
    for _ in range(releases):
        shared = rng.lognormal(2, 0.3, rounds)  # the machine's load hits both of a round
        burst = 1 + (rng.random((2, rounds)) < 0.05) * rng.exponential(1.0, (2, rounds))
        noise = np.exp(0.03 * rng.standard_t(3, (2, rounds)))
        reference, candidate = shared * burst * noise * [[1.0], [truth]]
        _, low, high = paired_ratio(candidate, reference, confidence=0.95)
        above += low > truth
        below += high < truth
    allowed = releases * (0.05 + 3.5 * math.sqrt(0.05 * 0.95 / releases))
    assert above <= allowed
    assert below <= allowed


def test_the_ratio_pairs_rounds_and_mirrors() -> None:
    rng = np.random.default_rng(10)
    reference = rng.lognormal(1, 1, 40)  # wild times, but each round's pair agrees
    candidate = 0.5 * reference * np.exp(rng.normal(0, 0.01, 40))
    ratio, low, high = paired_ratio(candidate, reference, confidence=0.95)
    assert low < 0.5 * 1.01
    assert high - low < 0.02
    inverse = paired_ratio(reference, candidate, confidence=0.95)
    np.testing.assert_allclose(inverse, (1 / ratio, 1 / high, 1 / low), rtol=1e-9)
    wider = paired_ratio(candidate, reference, confidence=0.999)
    assert wider[1] < low < high < wider[2]


@pytest.mark.parametrize("broken", [math.nan, math.inf, 0.0, -1.0])
def test_the_ratio_refuses_what_is_no_time(broken: float) -> None:
    times = [1.0] * 10
    assert np.isnan(paired_ratio([*times, broken], [*times, 1.0], confidence=0.95)).all()
    assert np.isnan(paired_ratio([1.0], [1.0], confidence=0.95)).all()
    assert paired_ratio(times, times, confidence=0.95) == (1, 1, 1)
    with pytest.raises(ValueError, match="10 rounds"):
        paired_ratio(times, times, confidence=0.95, blocks=[5, 4])


# what is recorded, and judged from it


def _series(rounds: int, ratio: float, noise: float, looks: tuple[int, ...]) -> Measurements:
    made = recorded(ratio=ratio, rounds=rounds, noise=noise)
    return replace(made, looks=looks, blocks=(rounds // 6,) * 6)


def test_the_interval_is_that_of_the_look_that_stopped() -> None:
    fixed = replace(_series(60, 0.5, 0.05, ()), looks=())
    stopped = replace(fixed, looks=(30, 60))
    target = _target(0.6)
    (one,) = judge_cost(fixed, target, "image-classification")
    (two,) = judge_cost(stopped, target, "image-classification")
    bounds = np.asarray([two.low, one.low, one.high, two.high], np.float64)
    assert (np.diff(bounds) > 0).all()
    assert two.verdict is decide("below", 0.6, bounds[0], bounds[3])
    assert "look 2 of at most 6" in two.reason
    again = Measurements.from_json(json.loads(json.dumps(stopped.to_json())))
    assert again == stopped
    assert judge_cost(again, target, "image-classification") == [two]


def test_an_undecided_ratio_says_why_timing_ended() -> None:
    cut = _series(60, 0.585, 0.1, (30, 60))
    (judgement,) = judge_cost(cut, _target(0.6, latency_seconds=7), "image-classification")
    assert judgement.verdict is INCONCLUSIVE
    assert "latency_seconds = 7" in judgement.reason
    assert judgement.needed is not None
    last = _series(960, 0.597, 0.2, (30, 60, 120, 240, 480, 960))
    (judgement,) = judge_cost(last, _target(0.6), "image-classification")
    assert judgement.verdict is INCONCLUSIVE
    assert "last look, at 960 rounds" in judgement.reason


def test_p95_takes_the_same_share_of_the_error_at_each_look() -> None:
    target = load_target("cloud-cpu")
    target = target.model_copy(update={"budgets": Budgets(latency_p95_ms=1000)})

    def verdict(rounds: int, looks: tuple[int, ...]) -> Verdict:
        made = replace(recorded(rounds=rounds), looks=looks)
        return judge_cost(made, target, "image-classification")[0].verdict

    assert verdict(60, ()) is PASS
    assert verdict(60, (30, 60)) is INCONCLUSIVE  # 60 rounds bound it at 95 %, not at 99.2 %
    assert verdict(94, (94,)) is PASS


def test_looks_and_blocks_that_contradict_the_times_are_refused() -> None:
    data = _series(60, 0.5, 0.05, (30, 60)).to_json()
    assert Measurements.from_json(data).looks == (30, 60)
    older = {k: v for k, v in data.items() if k not in ("looks", "blocks", "conditions")}
    assert Measurements.from_json(older).looks == ()
    for broken in (
        {"looks": [30, 90]},
        {"looks": [60, 60]},
        {"looks": [0, 60]},
        {"looks": [1, 2, 3, 4, 5, 6, 60]},
        {"looks": 3},
        {"blocks": [30, 31]},
        {"blocks": [61, -1]},
        {"conditions": {"load": 3}},
        {"times_ms": {**data["times_ms"], "reference": {"run": [1.0]}}},
    ):
        with pytest.raises(ArtifactError):
            Measurements.from_json({**data, **broken})


def test_a_busy_machine_is_remarked_on_in_a_sentence_each() -> None:
    made = recorded()
    reference = [10.0 + i % 3 for i in range(60)]
    quiet = replace(made, times_ms={**made.times_ms, "reference": {"run": reference}})
    assert remarks(quiet) == []
    steady = replace(quiet, conditions=Conditions(1.9, 2.0, 2600.0, 2601.0))
    assert remarks(steady) == []
    busy = replace(quiet, conditions=Conditions(0.5, 3.25, 2600.0, 2000.0))
    load, clock = remarks(busy)
    assert "load 3.2 on 2 cores" in load
    assert "2,600 to 2,000 MHz" in clock
    slower = [ms * (1 + i / 200) for i, ms in enumerate(reference)]
    drifting = replace(quiet, times_ms={**quiet.times_ms, "reference": {"run": slower}})
    (drift,) = remarks(drifting)
    assert "slower from the first third" in drift
    assert drifting.environment["reference_drift"] > 0.1
    assert busy.environment["load_1min"] == {"before": 0.5, "after": 3.25}
    assert busy.environment["threads"] == 2


def test_drift_compares_the_last_third_with_the_first() -> None:
    steps = [10.0, 10.0, 99.0, 10.0] + [50.0] * 4 + [12.0, 12.0, 0.1, 12.0]
    assert reference_drift({"run": steps}, WORKLOAD) == pytest.approx(0.2)
    assert reference_drift({"run": steps[:5]}, WORKLOAD) is None
    assert reference_drift({"run": [math.nan] * 12}, WORKLOAD) is None


# real models


def test_a_model_against_itself_comes_out_at_one(tmp_path: Path) -> None:
    model = product(tmp_path, 256)
    measured = measure(
        model,
        model,
        {"x": np.ones((4, 256), np.float32)},
        WORKLOAD,
        threads=1,
        rounds=30,
        until=_target(0.01, confidence=0.9999),
        seconds=0.0,
    )
    (phase,) = measured.phases(_target(0.01, confidence=0.9999).evidence)
    assert phase.ratio_low < 1 < phase.ratio_high
    assert measured.looks[0] == 30
    assert sum(measured.blocks) == measured.looks[-1] == phase.rounds
    assert len(measured.blocks) >= 6
    assert measured.conditions.load_before is not None


def test_timing_goes_on_until_the_interval_decides_or_the_time_is_over(tmp_path: Path) -> None:
    model = product(tmp_path, 64)

    def against_itself(target: Target) -> Measurements:
        return measure(
            model,
            model,
            {"x": np.ones((1, 64), np.float32)},
            WORKLOAD,
            threads=1,
            rounds=8,
            until=target,
            seconds=0.0,
        )

    # with a limit of 1 no interval decides soon
    even = _target(1.0, confidence=0.9999)
    assert against_itself(even).looks[:2] == (8, 16)
    hasty = _target(1.0, confidence=0.9999, latency_seconds=1e-3)
    cut = against_itself(hasty)
    assert cut.looks == (8,)
    (judgement,) = judge_cost(cut, hasty, "image-classification")
    assert judgement.verdict is INCONCLUSIVE
    # wherever the time ends, that is the last look, and the record holds together
    short = against_itself(_target(1.0, confidence=0.9999, latency_seconds=0.3))
    assert short.looks[0] == 8
    assert short.looks[-1] == sum(short.blocks) == len(short.times_ms["candidate"]["run"])
    assert Measurements.from_json(json.loads(json.dumps(short.to_json()))) == short
    # a thousand times slower than allowed is seen
    hopeless = against_itself(_target(0.001))
    (judgement,) = judge_cost(hopeless, _target(0.001), "image-classification")
    assert judgement.verdict is FAIL
    assert len(hopeless.looks) < LOOKS
    # without a latency budget one look is enough
    free = load_target("cloud-cpu").model_copy(update={"budgets": Budgets(disk_size_mib=9)})
    assert against_itself(free).looks == (8,)
