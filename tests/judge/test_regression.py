"""New against old: quality on common examples, costs as ratios, and what cannot be compared."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from exporter.budget import Budgets
from exporter.devices.timing import Memory
from exporter.judge.measure import Measurements
from exporter.judge.paired import common_examples, judge_quality_regression
from exporter.judge.regression import judge_cost_measured, judge_cost_regression, quotient
from exporter.judge.sequential import paired_ratio
from exporter.judge.size import Size
from exporter.judge.verdict import FAIL, INCONCLUSIVE, PASS, Judgement, overall
from exporter.models.scores import Scores
from exporter.target import Evidence, Target, Workload, load_target

TASKS = ("text-classification", "image-classification", "feature-extraction", "text-generation")
HOST = {"isa": "x86-64", "cpu": "a server"}


def target(**budgets: float) -> Target:
    return load_target("mobile").model_copy(update={"budgets": Budgets(**budgets)})


MOBILE = load_target("mobile")


def scores(task: str, count: int = 4000, seed: int = 0, wrong: float = 0.2) -> Scores:
    rng = np.random.default_rng(seed)
    base = np.random.default_rng(99)
    ids = tuple(f"{i:064x}" for i in range(count))
    if task == "text-generation":
        tokens = base.integers(20, 200, count).astype(np.float64)
        nll = tokens * np.exp(base.normal(0.5, 0.1, count)) * (1 + rng.normal(0, 0.01, count))
        return Scores(task, ids, {"nll": nll, "tokens": tokens, "correct": np.floor(tokens / 2)})
    correct = base.random(count) > wrong
    flips = rng.choice(count, count // 200, replace=False)
    correct[flips] = ~correct[flips]
    values = {"correct": correct.astype(np.float64)}
    if task == "feature-extraction":
        values["cosine"] = 1 - base.random(count) / 100 - rng.random(count) / 1000
    else:
        values |= {"label": base.integers(0, 3, count).astype(np.float64), "nll": rng.random(count)}
    return Scores(task, ids, values)


def judged(old: Scores, new: Scores, **options: bool) -> dict[str, Judgement]:
    given = {"same": False, "same_reference": True, **options}
    return {j.metric: j for j in judge_quality_regression(old, new, MOBILE, **given)}


@pytest.mark.parametrize("task", TASKS)
def test_swapping_old_and_new_mirrors_every_quality_row(task: str) -> None:
    one, two = scores(task, seed=1), scores(task, seed=2)
    there, back = judged(one, two), judged(two, one)
    assert set(there) == set(back)
    flips = there.pop("flip_ratio", None)
    assert (flips is None) == (task == "text-generation")
    if flips is not None:  # an answer that differs differs both ways
        assert flips.measured == back["flip_ratio"].measured
    assert len(there) == (2 if task == "feature-extraction" else 1)
    for metric, row in there.items():
        other = back[metric]
        assert (row.reference, row.candidate) == (other.candidate, other.reference)
        assert row.measured is not None
        assert row.low is not None
        assert row.high is not None
        assert row.measured not in (0.0, 1.0)
        if metric == "perplexity_ratio":
            assert other.measured == pytest.approx(1 / row.measured)
            assert other.low == pytest.approx(1 / row.high, rel=1e-3)
            assert other.high == pytest.approx(1 / row.low, rel=1e-3)
        else:
            assert other.measured == pytest.approx(-row.measured)
            width = row.high - row.low
            assert other.low == pytest.approx(-row.high, abs=width / 10)
            assert other.high == pytest.approx(-row.low, abs=width / 10)


@pytest.mark.parametrize("task", TASKS)
def test_a_worse_model_fails_and_a_better_one_passes(task: str) -> None:
    old = scores(task)
    rng = np.random.default_rng(3)
    values = dict(old.values)
    if task == "text-generation":
        values["nll"] = values["nll"] + 0.1 * values["tokens"]
    else:
        values["correct"] = values["correct"] * (rng.random(len(old)) > 0.1)
    new = replace(old, values=values)
    metric = "perplexity_ratio" if task == "text-generation" else "accuracy_drop_points"
    assert judged(old, new)[metric].verdict is FAIL
    assert judged(new, old)[metric].verdict is PASS


def test_nothing_needs_to_be_shown_of_the_same_file() -> None:
    few = scores("text-classification", 30)
    assert judged(few, few)["accuracy_drop_points"].verdict is INCONCLUSIVE  # too few to show it
    row = judged(few, few, same=True)["accuracy_drop_points"]
    assert row.verdict is PASS
    assert (row.low, row.measured, row.high) == (0.0, 0.0, 0.0)


def _part(whole: Scores, start: int, stop: int) -> Scores:
    values = {name: column[start:stop] for name, column in whole.values.items()}
    return Scores(whole.task, whole.ids[start:stop], values)


def test_common_examples_are_paired_by_content_in_any_order() -> None:
    whole = scores("text-classification", 100)
    backwards = Scores(
        whole.task, whole.ids[::-1], {n: column[::-1] for n, column in whole.values.items()}
    )
    both = common_examples(_part(whole, 0, 70), _part(backwards, 0, 60))  # 40..99
    assert both.old.ids == both.new.ids
    assert set(both.old.ids) == set(whole.ids[40:70])
    assert np.array_equal(both.old.values["correct"], both.new.values["correct"])
    twice = replace(whole, ids=("a",) * 100)
    assert len(common_examples(twice, twice).new) == 100


def test_partly_common_examples_are_used_and_disjoint_ones_are_inconclusive() -> None:
    whole = scores("text-classification", 8000)
    row = judged(_part(whole, 0, 6000), _part(whole, 2000, 8000))["accuracy_drop_points"]
    assert row.verdict is PASS
    assert row.count == 4000
    apart = judged(_part(whole, 0, 100), _part(whole, 200, 300))["accuracy_drop_points"]
    assert apart.verdict is INCONCLUSIVE
    assert apart.measured is None
    assert "different examples: export both with the same test data" in apart.reason
    thin = judged(_part(whole, 0, 100), _part(whole, 93, 300))["accuracy_drop_points"]
    assert thin.verdict is INCONCLUSIVE
    assert "only 7 examples" in thin.reason


def test_an_example_with_another_label_is_not_the_same_example() -> None:
    old = scores("text-classification", 4000)
    labels = old.values["label"].copy()
    labels[:500] += 1
    new = replace(old, values={**old.values, "label": labels})
    both = common_examples(old, new)
    assert both.relabelled == 500
    assert judged(old, new)["accuracy_drop_points"].count == 3500


def test_recall_among_other_documents_is_another_recall() -> None:
    whole = scores("feature-extraction", 8000)
    rows = judged(_part(whole, 0, 6000), _part(whole, 2000, 8000))
    assert {row.verdict for row in rows.values()} == {INCONCLUSIVE}
    assert "recall depends on all documents" in rows["accuracy_drop_points"].reason


def test_cosines_to_different_originals_are_not_compared() -> None:
    one, two = scores("feature-extraction", seed=1), scores("feature-extraction", seed=2)
    assert set(judged(one, two)) == {
        "accuracy_drop_points",
        "embedding_cosine_drop",
        "flip_ratio",
    }
    assert set(judged(one, two, same_reference=False)) == {
        "accuracy_drop_points",
        "flip_ratio",
    }
    far = replace(two, values={**two.values, "cosine": two.values["cosine"] - 0.2})
    assert judged(one, far)["embedding_cosine_drop"].verdict is FAIL


def test_other_tokens_make_another_perplexity() -> None:
    old = scores("text-generation")
    new = replace(old, values={**old.values, "tokens": old.values["tokens"] + 1})
    row = judged(old, new)["perplexity_ratio"]
    assert row.verdict is INCONCLUSIVE
    assert "different tokens" in row.reason


def test_a_metric_without_a_margin_stays_open() -> None:
    old = scores("text-classification")
    (row,) = judge_quality_regression(
        old, old, target(latency_ratio=0.5), same=False, same_reference=True
    )
    assert row.verdict is INCONCLUSIVE
    assert "sets no margin" in row.reason


def test_answers_that_are_no_numbers_fail() -> None:
    old = scores("text-classification")
    broken = old.values["nll"].copy()
    broken[3] = math.nan
    new = replace(old, values={**old.values, "nll": broken})
    row = judged(old, new)["accuracy_drop_points"]
    assert row.verdict is FAIL
    assert "The new model's answer to 1 of 4,000" in row.reason
    assert judged(new, old)["accuracy_drop_points"].verdict is INCONCLUSIVE


# Costs


def measured(ratio: float, *, seed: int = 0, disk: int = 100, peak: float = 200.0) -> Measurements:
    rng = np.random.default_rng(seed)
    reference = rng.lognormal(3, 0.1, 60)
    candidate = ratio * reference * np.exp(rng.normal(0, 0.02, 60))
    return Measurements(
        HOST,
        Workload(),
        1,
        {"reference": {"run": list(reference)}, "candidate": {"run": list(candidate)}},
        Size(400, 300),
        Size(disk, disk - 10),
        Memory(300.0, 50.0),
        (Memory(peak, 50.0), Memory(peak + 0.1, 50.0)),
    )


def costs(
    old: Measurements,
    new: Measurements,
    tolerance: float = 0.05,
    apart: tuple[str, ...] = (),
    origins: tuple[str, ...] = (),
    same: bool = False,
) -> dict[str, Judgement]:
    rows = judge_cost_regression(
        old, new, tolerance, Evidence(), same=same, apart=apart, origins=origins
    )
    return {row.metric: row for row in rows}


def test_a_cost_regresses_when_it_is_shown_to_grow_beyond_the_tolerance() -> None:
    old = measured(0.5, seed=1)
    for factor, verdict in ((0.8, PASS), (1.0, PASS), (1.2, FAIL)):
        new = measured(0.5 * factor, seed=2, disk=round(100 * factor), peak=200.0 * factor)
        assert {j.verdict for j in costs(old, new).values()} == {verdict}, factor
    slower = measured(0.5 * 1.2, seed=2, disk=120, peak=240.0)
    assert {j.verdict for j in costs(old, slower, tolerance=0.25).values()} == {PASS}
    close = costs(old, measured(0.5 * 1.05, seed=2))["latency_ratio"]
    assert close.verdict is INCONCLUSIVE
    assert "--measure" in close.reason


def test_swapping_old_and_new_inverts_every_cost() -> None:
    one, two = measured(0.5, seed=1), measured(0.6, seed=2, disk=150, peak=180.0)
    there, back = costs(one, two), costs(two, one)
    assert set(there) == {
        "latency_ratio", "disk_size_ratio", "download_size_ratio", "peak_memory_ratio"
    }  # fmt: skip
    for metric, row in there.items():
        assert back[metric].measured == pytest.approx(1 / (row.measured or 0))
        assert back[metric].low == pytest.approx(1 / (row.high or 0))
        assert back[metric].high == pytest.approx(1 / (row.low or 0))


def test_times_of_other_machines_or_originals_are_not_compared() -> None:
    old, new = measured(0.5), measured(0.4)
    far = costs(old, new, apart=("they were measured on other CPUs",))
    assert far["latency_ratio"].verdict is far["peak_memory_ratio"].verdict is INCONCLUSIVE
    assert "on other CPUs: measure both here with --measure" in far["latency_ratio"].reason
    assert far["disk_size_ratio"].verdict is PASS
    other = costs(old, new, origins=("they were made from different originals",))
    assert other["latency_ratio"].verdict is INCONCLUSIVE
    assert other["peak_memory_ratio"].verdict is PASS


def test_measured_together_the_pairs_decide() -> None:
    both = measured(1.2)
    rows = {j.metric: j for j in judge_cost_measured(both, 0.05, Evidence())}
    assert rows["latency_ratio"].verdict is FAIL
    assert rows["latency_ratio"].measured == pytest.approx(1.2, rel=0.02)
    assert rows["disk_size_ratio"].measured == pytest.approx(100 / 400)
    assert rows["peak_memory_ratio"].measured == pytest.approx(200.1 / 300)


def test_the_quotient_covers_the_truth_as_often_as_it_says() -> None:
    """Two ratios timed apart: each bound is crossed about one time in twenty."""
    rng = np.random.default_rng(0)
    low_missed = high_missed = 0
    trials = 400
    truth = 0.8
    for _ in range(trials):
        sides = []
        for ratio, noise in ((0.5 * truth, 0.05), (0.5, 0.1)):
            reference = np.exp(rng.normal(0, 0.1, 40))
            candidate = ratio * reference * np.exp(rng.normal(0, noise, 40))
            sides.append(paired_ratio(candidate, reference, confidence=0.95))
        _, low, high = quotient(sides[0], sides[1])
        low_missed += low > truth
        high_missed += high < truth
    assert low_missed / trials < 0.085
    assert high_missed / trials < 0.085
    assert (low_missed + high_missed) / trials > 0.04  # and is not merely wide


def test_a_broken_time_never_passes() -> None:
    broken = measured(0.5)
    broken.times_ms["candidate"]["run"][3] = math.nan
    assert costs(measured(0.5), broken)["latency_ratio"].verdict is INCONCLUSIVE
    assert overall(costs(broken, measured(0.5)).values()) is INCONCLUSIVE
