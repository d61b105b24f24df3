"""What devices tell and what is made of it: agreement, cost, verdicts; each can go either way."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from exporter.devices.device import Ran, Traits
from exporter.devices.host import host_isa
from exporter.errors import ArtifactError
from exporter.judge.agreement import Answers, agreement, difference, same_tokens
from exporter.judge.device_cost import cost_of, tells_cost
from exporter.judge.devices import devices_not_judged, judge_devices
from exporter.judge.reading import (
    Agreement,
    Cost,
    Reading,
    readings_from_json,
    readings_to_json,
)
from exporter.judge.survey import few
from exporter.judge.verdict import FAIL, INCONCLUSIVE, PASS, overall
from exporter.models.examples import Development, Examples
from exporter.models.scores import Scores
from exporter.models.tasks import get_task
from exporter.report.wording import explain
from exporter.target import Target, Workload, load_target

HERE = Agreement(100, 2, 0.98, 0.999, {"accuracy": 0.9})
RAN = Reading(
    "arm64:cortex-a76",
    required=False,
    status="ran",
    isa="arm64",
    features=("neon", "fp16", "dotprod"),
    unit="instructions",
    examples=100,
    float_difference=1e-5,
    here=HERE,
    there=HERE,
    reference=Cost(answer=500e6),
    candidate=Cost(answer=200e6),
)
TASK = "text-classification"


def _target(**budgets: Any) -> Target:
    changed = load_target("mobile").model_dump()
    changed["devices"] = [{"name": "arm64:cortex-a76"}]
    changed["budgets"] = {
        "device_difference": 1e-4,
        "device_flip_ratio": 0.05,
        "device_cosine_drop": 0.01,
        "instruction_ratio": 0.6,
        "board_memory_mib": 256,
    } | budgets
    return Target.model_validate(changed)


def _verdicts(*readings: Reading, **budgets: Any) -> dict[str, str]:
    found = judge_devices(readings, _target(**budgets), TASK)
    return {j.metric: j.verdict.value for j in found}


def test_a_device_that_agrees_passes_and_what_it_did_not_tell_is_not_judged() -> None:
    assert _verdicts(RAN) == dict.fromkeys(
        [
            "device_failures",
            "device_difference",
            "device_flip_ratio",
            "device_cosine_drop",
            "instruction_ratio",
        ],
        "PASS",
    )
    (note,) = devices_not_judged([RAN], _target(), TASK)
    assert note.startswith("board_memory_mib: not judged")


@pytest.mark.parametrize(
    ("change", "lost"),
    [
        ({"float_difference": 2e-4}, "device_difference"),
        ({"there": replace(HERE, flips=9)}, "device_flip_ratio"),
        ({"there": replace(HERE, cosine=0.98)}, "device_cosine_drop"),
        ({"candidate": Cost(answer=301e6)}, "instruction_ratio"),
        ({"smallest_mib": {"candidate": 272, "reference": None}}, "board_memory_mib"),
        ({"smallest_mib": {"candidate": None, "reference": None}}, "board_memory_mib"),
    ],
)
def test_each_budget_can_be_lost(change: dict[str, Any], lost: str) -> None:
    found = _verdicts(replace(RAN, **change))
    assert [metric for metric, verdict in found.items() if verdict != "PASS"] == [lost]
    assert found[lost] == "FAIL"


@pytest.mark.parametrize(
    "other", [{"isa": "x86-64", "features": ("avx2",)}, {"features": ("neon",)}]
)
@pytest.mark.parametrize(
    ("metric", "good", "change"),
    [
        ("instruction_ratio", {}, {"candidate": Cost(answer=450e6)}),
        (
            "board_memory_mib",
            {"smallest_mib": {"candidate": 128}},
            {"smallest_mib": {"candidate": None}},
        ),
    ],
)
def test_costs_bind_only_on_a_cpu_of_the_targets_class(
    metric: str, good: dict[str, Any], change: dict[str, Any], other: dict[str, Any]
) -> None:
    own = replace(RAN, **good)
    stranger = replace(own, device="a stranger", **other)
    for mine, theirs, verdict in (
        (own, replace(stranger, **change), PASS),
        (replace(own, **change), stranger, FAIL),
    ):
        found = {j.metric: j for j in judge_devices([theirs, mine], _target(), TASK)}
        assert (found[metric].verdict, found[metric].device) == (verdict, RAN.device)
        # a better CPU than the floor is of the class too
        better = replace(theirs, isa="arm64", features=(*RAN.features, "i8mm"))
        found = {j.metric: j for j in judge_devices([better, mine], _target(), TASK)}
        assert found[metric].verdict is FAIL
    for alone in (stranger, replace(stranger, **change)):
        found = {j.metric: j for j in judge_devices([alone], _target(), TASK)}
        assert metric not in found
        assert found["device_flip_ratio"].verdict is PASS  # answers must hold everywhere
        note = devices_not_judged([alone], _target(), TASK)[0]
        assert note.startswith("instruction_ratio, board_memory_mib: not judged")
        assert "mobile's class (arm64, neon, fp16, dotprod)" in note
        assert "a stranger told, and is of another" in note


@pytest.mark.parametrize(
    ("change", "lost"),
    [
        ({"candidate": Cost(answer=301e6)}, "instructions, ratio"),
        ({"there": replace(HERE, flips=9)}, "flips a device adds"),
        ({"smallest_mib": {"candidate": 272}}, "board memory"),
    ],
)
def test_the_summary_names_the_device(change: dict[str, Any], lost: str) -> None:
    judgements = judge_devices([replace(RAN, **change)], _target(), TASK)
    assert f"{lost} on arm64:cortex-a76 is" in explain([j.to_json() for j in judgements])
    (tight,) = [j for j in judge_devices([RAN], _target(), TASK) if j.metric == "instruction_ratio"]
    assert "instructions, ratio on arm64:cortex-a76: at worst" in explain([tight.to_json()])


def test_a_flip_that_the_host_has_too_is_no_fault_of_the_device() -> None:
    bad = replace(HERE, flips=40)
    assert _verdicts(replace(RAN, here=bad, there=bad))["device_flip_ratio"] == "PASS"


def test_the_worst_device_decides() -> None:
    worse = replace(RAN, device="x86-64:haswell", there=replace(HERE, flips=50))
    for readings in ((RAN, worse), (worse, RAN)):
        (judgement,) = [
            j for j in judge_devices(readings, _target(), TASK) if j.metric == "device_flip_ratio"
        ]
        assert judgement.verdict is FAIL
        assert "x86-64:haswell" in judgement.reason


@pytest.mark.parametrize(
    ("metric", "change"),
    [
        ("device_difference", {"float_difference": 2e-4}),
        ("device_cosine_drop", {"there": replace(HERE, cosine=0.98)}),
        ("instruction_ratio", {"candidate": Cost(answer=450e6)}),
        ("board_memory_mib", {"smallest_mib": {"candidate": 272, "reference": None}}),
        ("board_memory_mib", {"smallest_mib": {"candidate": None, "reference": None}}),
    ],
)
def test_of_each_budget_the_worst_device_decides(metric: str, change: dict[str, Any]) -> None:
    good = replace(RAN, smallest_mib={"candidate": 128, "reference": 256})
    worse = replace(good, device="arm64:cortex-a53", **change)
    for readings in ((good, worse), (worse, good)):
        found = {j.metric: j for j in judge_devices(readings, _target(), TASK)}
        assert [m for m, j in found.items() if j.verdict is not PASS] == [metric]
        assert found[metric].verdict is FAIL
        assert "arm64:cortex-a53" in found[metric].reason


def test_a_required_device_that_is_missing_or_unfinished_leaves_the_verdict_open() -> None:
    for status in ("missing", "unfinished"):
        gone = Reading("arm64:cortex-a53", True, status, reason="no emulator")
        judgements = judge_devices([RAN, gone], _target(), TASK)
        assert overall(judgements) is INCONCLUSIVE
        assert "arm64:cortex-a53 is required: no emulator." in judgements[0].reason
        assert overall(judge_devices([RAN, replace(gone, required=False)], _target(), TASK)) is PASS


def test_a_device_on_which_it_does_not_run_fails_it_required_or_not() -> None:
    for required in (True, False):
        bad = Reading("wasm", required, "failed", reason="wasm: no MatMulNBits")
        judgements = judge_devices([RAN, bad], _target(), TASK)
        assert overall(judgements) is FAIL
        assert "no MatMulNBits" in judgements[0].reason


def test_without_a_device_that_told_nothing_is_judged() -> None:
    gone = Reading("arm64:cortex-a53", False, "missing", reason="no emulator")
    assert judge_devices([gone], _target(), TASK) == []
    notes = devices_not_judged([gone], _target(), TASK)
    assert notes[0] == "arm64:cortex-a53 was not asked: no emulator."


def test_only_instructions_count_as_instructions() -> None:
    assert "instruction_ratio" not in _verdicts(replace(RAN, unit="ms"))


def test_the_cost_of_a_language_model_is_the_prompt_and_all_tokens() -> None:
    ran = Ran(
        costs={"prefill": (10.0, 10.0), "decode": (2.0, 2.002)},
        classes={"prefill": {"all": 10.0, "dot_product": 4.0}, "decode": {"all": 2.0}},
    )
    cost = cost_of(ran, Workload(decode_tokens=5))
    assert cost.answer == pytest.approx(10 + 5 * 2.001)
    assert cost.classes == {"all": 20.0, "dot_product": 4.0}
    assert cost.spread == pytest.approx(0.001)


def test_differences_are_relative_only_to_large_outputs_and_nan_is_never_near() -> None:
    one = ({"y": np.array([0.0, 0.5])},)
    assert difference(one, ({"y": np.array([0.0, 0.6])},)) == pytest.approx(0.1)
    large = ({"y": np.array([100.0, 100.0])},)
    assert difference(large, ({"y": np.array([100.0, 101.0])},)) == pytest.approx(0.01)
    assert difference(one, ({"y": np.array([np.nan, 0.5])},)) > 1e300  # type: ignore[operator]
    assert difference(({"ids": np.array([1])},), ({"ids": np.array([2])},)) is None


def test_readings_survive_json_and_malformed_ones_are_refused() -> None:
    stored = json.loads(json.dumps(readings_to_json([RAN])))
    assert readings_from_json(stored) == (RAN,)
    for change in (
        {"status": "fine"},
        {"float_difference": "none"},
        {"here": {"decisions": 0, "flips": 0, "top_k": 1.0, "cosine": 1.0}},
        {"here": {"decisions": 10, "flips": 11, "top_k": 1.0, "cosine": 1.0}},
        {"candidate": {"answer": float("nan")}},
        {"candidate": {"answer": -1.0}},
        {"reference": {"phases": {"run": -1.0}}},
        {"float_difference": -1.0},
        {"smallest_mib": {"candidate": -16}},
        {"times_ms": {"reference": {"run": [-1.0]}, "candidate": {"run": [1.0]}}},
    ):
        with pytest.raises(ArtifactError):
            readings_from_json([{**stored[0], **change}])
    with pytest.raises(ArtifactError, match="one reading a device"):
        readings_from_json([stored[0], stored[0]])


def test_a_device_answers_the_first_window_of_each_document() -> None:
    owner = (0, 0, 0, 1, 2, 2, 3)
    feeds = tuple({"x": np.array([i])} for i in range(len(owner)))
    examples = Examples(Development, tuple("abcd"), feeds, owner, None, {})
    chosen = few(examples, 3, get_task("text-generation"))
    assert (chosen.ids, chosen.owner) == (("a", "b", "c"), (0, 1, 2))
    assert [int(f["x"][0]) for f in chosen.feeds] == [0, 3, 4]
    whole = few(examples, 3, get_task("feature-extraction"))
    assert whole.owner == (0, 0, 0, 1, 2, 2)


def test_what_both_count_among_the_likeliest_is_shared_and_padding_is_not_compared() -> None:
    mask = np.array([[1, 0]])
    before = np.zeros((1, 2, 8))
    before[0, 0] = np.arange(8)
    after = before.copy()
    after[0, 0] = [7, 6, 5, 4, 3, 2, 1, 0]  # the likeliest five share two: 3 and 4
    after[0, 1] = -1
    scores = Scores(TASK, ("a",), {"correct": np.ones(1)}, {}, {})
    calls: tuple[Any, ...] = ({"attention_mask": mask},)
    told = agreement(Answers(calls, ({"logits": before},), scores), ({"logits": after},), scores)
    assert (told.decisions, told.flips) == (1, 1)
    assert told.top_k == pytest.approx(2 / 5)
    assert same_tokens(np.array([[1, 2]]), np.array([[1, 3]])) == 0.5


def test_an_emulated_cpu_of_this_machines_kind_counts_only_for_a_budget() -> None:
    here, there = (
        SimpleNamespace(traits=Traits("d", "d", isa, cost="instructions"))
        for isa in (host_isa(), "riscv")
    )
    free = _target(instruction_ratio=None)
    own = _target().model_copy(update={"isa": host_isa(), "features": ()})
    other = _target().model_copy(update={"isa": "riscv"})
    assert tells_cost(there, free)  # type: ignore[arg-type]
    assert not tells_cost(here, free)  # type: ignore[arg-type]
    assert tells_cost(here, own)  # type: ignore[arg-type]
    assert not tells_cost(here, other)  # type: ignore[arg-type]
