"""Size, latency, memory and the gate over all budgets, on real models and on known numbers."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from exporter.budget import Budgets
from exporter.devices.host import host_description
from exporter.devices.timing import Memory
from exporter.errors import ArtifactError
from exporter.graph.model import OnnxModel
from exporter.judge.devices import METRICS as DEVICE_METRICS
from exporter.judge.gate import cautions, judge, judge_cost, not_judged
from exporter.judge.latency import answer_ms, rounds_for
from exporter.judge.measure import Measurements, measure
from exporter.judge.size import Size, compressed_bytes, measure_size
from exporter.judge.verdict import FAIL, INCONCLUSIVE, PASS, Verdict, overall
from exporter.models.scores import Scores
from exporter.target import Evidence, Target, Workload, load_target
from tests.devices.graphs import product
from tests.judge.test_divergence import classes

SERVER = {"isa": "x86-64", "features": ["avx2"], "cores": 2, "cpu": "a server"}
WORKLOAD = Workload(decode_tokens=10)


def _target(**budgets: float) -> Target:
    return load_target("cloud-cpu").model_copy(update={"budgets": Budgets(**budgets)})


def _measurements(ratio: float = 0.5, rounds: int = 60, noise: float = 0.02) -> Measurements:
    rng = np.random.default_rng(0)
    reference = rng.lognormal(3, 0.2, rounds)
    candidate = ratio * reference * np.exp(rng.normal(0, noise, rounds))
    return Measurements(
        SERVER,
        WORKLOAD,
        2,
        {"reference": {"run": list(reference)}, "candidate": {"run": list(candidate)}},
        Size(100 << 20, 90 << 20),
        Size(25 << 20, 18 << 20),
        Memory(300.0, 50.0),
        (Memory(200.0, 50.0), Memory(201.0, 50.0)),
    )


def _verdicts(measurements: Measurements, **budgets: float) -> dict[str, Verdict]:
    judgements = judge_cost(measurements, _target(**budgets), "text-classification")
    return {j.metric: j.verdict for j in judgements}


def test_each_cost_budget_passes_on_its_good_side_and_fails_beyond() -> None:
    figures = {
        "latency_ratio": 0.5,
        "latency_p95_ms": 0.5 * math.exp(3),
        "disk_size_ratio": 0.25,
        "disk_size_mib": 25,
        "download_size_ratio": 0.2,
        "download_size_mib": 18,
        "peak_memory_mib": 201,
    }
    generous = {
        name: min(2 * value, 1) if name == "latency_ratio" else 2 * value
        for name, value in figures.items()
    }
    tight = {name: value / 2 for name, value in figures.items()}
    assert set(_verdicts(_measurements(), **generous).items()) == {(n, PASS) for n in figures}
    assert set(_verdicts(_measurements(), **tight).items()) == {(n, FAIL) for n in figures}


def test_latency_near_its_limit_is_inconclusive_and_says_how_many_rounds() -> None:
    close = _measurements(ratio=0.585, noise=0.1)
    (judgement,) = judge_cost(close, _target(latency_ratio=0.6), "text-classification")
    assert judgement.verdict is INCONCLUSIVE
    assert judgement.needed is not None
    assert judgement.needed > 60
    assert str(judgement.needed) in judgement.reason.replace(",", "")
    closer = _measurements(ratio=0.588, noise=0.1)
    (open_,) = judge_cost(closer, _target(latency_ratio=0.6), "text-classification")
    assert open_.needed is not None
    assert open_.needed > 1.3 * judgement.needed
    enough = _measurements(ratio=0.585, rounds=2 * judgement.needed, noise=0.1)
    assert _verdicts(enough, latency_ratio=0.6) == {"latency_ratio": PASS}
    few = _measurements(rounds=30)
    (tail,) = judge_cost(few, _target(latency_p95_ms=1000), "text-classification")
    assert (tail.verdict, tail.needed) == (INCONCLUSIVE, 59)  # 0.95^59 < 0.05


def test_a_missing_or_broken_time_never_passes() -> None:
    for value in (math.nan, math.inf, 0.0):
        broken = _measurements()
        broken.times_ms["candidate"]["run"][3] = value
        verdicts = _verdicts(broken, latency_ratio=0.9, latency_p95_ms=1e9)
        assert verdicts["latency_ratio"] is INCONCLUSIVE
        assert verdicts["latency_p95_ms"] is (PASS if value == 0 else INCONCLUSIVE)


def test_absolute_latency_is_judged_only_on_the_targets_own_kind_of_machine() -> None:
    target = load_target("cloud-cpu")
    elsewhere = replace(_measurements(), host={**SERVER, "isa": "arm64"})
    assert "latency_p95_ms" not in {
        j.metric for j in judge_cost(elsewhere, target, "text-classification")
    }
    scores = Scores("text-classification", ("a",), {"correct": np.ones(1)}, {}, {"label": ("x",)})
    note, devices = not_judged(elsewhere, target, scores)
    assert "latency_p95_ms" in note
    assert not_judged(_measurements(), target, scores) == [devices]
    assert "device_difference" in devices  # none was asked
    assert rounds_for(target, SERVER) == 94  # 0.95^94 < 0.05 / 6, the error of one look
    assert rounds_for(target, elsewhere.host) == target.evidence.latency_rounds


def test_a_language_models_answer_is_prefill_and_every_token() -> None:
    phases = {"prefill": [10.0, 20.0], "decode": [1.0, 2.0]}
    np.testing.assert_allclose(answer_ms(phases, WORKLOAD), [20.0, 40.0])
    times = {
        "reference": {"prefill": [10.0] * 30, "decode": [1.0] * 30},
        "candidate": {"prefill": [20.0] * 30, "decode": [0.1] * 30},
    }
    measurements = replace(_measurements(), times_ms=times)
    answer, prefill, decode = measurements.phases()
    assert [p.phase for p in (answer, prefill, decode)] == ["answer", "prefill", "decode"]
    assert answer.ratio == pytest.approx(21 / 20)
    assert prefill.ratio == pytest.approx(2)
    assert decode.ratio == pytest.approx(0.1)
    assert measurements.latency_ratio.value == answer.ratio


def test_the_gate_judges_every_budget_in_order() -> None:
    reference, scores = classes(3000, kl=0.001)
    target = load_target("cloud-cpu")
    judgements = judge(reference, scores, _measurements(), target)
    asked = [b.kind.metric for b in target.budgets.for_task("text-classification")]
    assert [j.metric for j in judgements] == [m for m in asked if m not in DEVICE_METRICS]
    assert overall(judgements) is PASS
    same = replace(
        _measurements(ratio=1.0), candidate_size=Size(100 << 20, 90 << 20)
    )  # a do-nothing export
    assert overall(judge(reference, scores, same, target)) is FAIL


def test_size_counts_weight_files_and_compression_is_deterministic(tmp_path: Path) -> None:
    model = product(tmp_path, 64)
    (tmp_path / "model.onnx.data").write_bytes(b"\0" * 5_000_000)
    (tmp_path / "tokenizer.json").write_bytes(b"x" * 1000)
    size = measure_size(model)
    assert size.disk_bytes == model.path.stat().st_size + 5_000_000
    assert size.download_bytes < model.path.stat().st_size + 5_000
    assert measure_size(OnnxModel(tmp_path)) == size
    import zstandard

    raw = model.path.read_bytes()
    piecewise = compressed_bytes(model.path)
    assert piecewise == pytest.approx(len(zstandard.ZstdCompressor(level=10).compress(raw)), abs=64)


def test_measuring_real_models_round_trips_and_judges(tmp_path: Path) -> None:
    reference, candidate = product(tmp_path / "a", 512), product(tmp_path / "b", 512, seed=1)
    measured = measure(
        reference,
        candidate,
        {"x": np.ones((1, 512), np.float32)},
        WORKLOAD,
        threads=1,
        rounds=8,
        seconds=0.0,
    )
    assert measured.reference_size.disk_bytes > 512 * 512 * 4
    assert len(measured.times_ms["candidate"]["run"]) == 8
    assert measured.candidate_memory[0].peak_mib > 10
    assert measured.host["cpu"] == host_description()["cpu"]
    text = json.dumps(measured.to_json(), allow_nan=False)
    assert Measurements.from_json(json.loads(text)) == measured
    verdicts = {
        j.metric: j.verdict
        for j in judge_cost(
            measured, _target(disk_size_ratio=0.5, peak_memory_mib=2000), "image-classification"
        )
    }
    assert verdicts == {"disk_size_ratio": FAIL, "peak_memory_mib": PASS}


def test_malformed_measurements_are_refused() -> None:
    data = _measurements().to_json()
    for broken in ({}, {**data, "times_ms": 3}, {**data, "workload": {"batch": 0}}):
        with pytest.raises(ArtifactError):
            Measurements.from_json(broken)


def test_a_reference_no_better_than_guessing_is_said_to_be_so() -> None:
    reference, _ = classes(400)
    assert cautions(reference, _measurements(), Evidence()) == []
    rng = np.random.default_rng(0)
    reference.values["correct"][:] = rng.random(400) < 0.25  # of four classes
    (told,) = cautions(reference, _measurements(), Evidence())
    assert "not shown to beat the most frequent class (25.0%)" in told


def test_a_longer_tail_behind_a_faster_median_is_said() -> None:
    reference, _ = classes(400)
    tailed = _measurements()
    times = tailed.times_ms["candidate"]["run"]
    for i in range(0, len(times), 10):
        times[i] *= 20
    (told,) = cautions(reference, tailed, Evidence())
    assert "the slowest did not" in told
