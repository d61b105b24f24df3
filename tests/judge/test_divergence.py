"""Flips, KL divergence and the worst slice, on answers whose difference is known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest

from exporter.budget import Budgets
from exporter.judge.divergence import divergences, judge_divergence
from exporter.judge.gate import judge_answers
from exporter.judge.slices import judge_slices, slices_of
from exporter.judge.statistics import clustered_quantile_low, proportion_bounds
from exporter.judge.verdict import FAIL, INCONCLUSIVE, PASS, Judgement
from exporter.models.scores import Scores
from exporter.target import Evidence, load_target

EVIDENCE = Evidence(resamples=400)


def classes(count: int, flipped: int = 0, kl: float = 0.01) -> tuple[Scores, Scores]:
    """Right answers, and a candidate that gives `flipped` of them otherwise."""
    ids = tuple(map(str, range(count)))
    label = np.arange(count) % 4
    prediction = label.astype(float)
    prediction[:flipped] = (prediction[:flipped] + 1) % 4
    rng = np.random.default_rng(0)
    names = tuple("abcd"[k] for k in label)

    def scores(answer: np.ndarray) -> Scores:
        values = {"correct": (answer == label) * 1.0, "prediction": answer, "label": label * 1.0}
        values["nll"] = np.ones(count)
        return Scores("text-classification", ids, values, {}, {"label": names})

    candidate = scores(prediction)
    candidate.values["kl"] = kl * rng.gamma(2, 0.5, count)
    return scores(label.astype(float)), candidate


def language(documents: int = 40, tokens: int = 500, kl: float = 0.02) -> tuple[Scores, Scores]:
    ids = tuple(map(str, range(documents)))
    rng = np.random.default_rng(1)
    each = (kl * rng.gamma(2, 0.5, (documents, tokens))).astype(np.float16)
    sums = each.astype(np.float64).sum(1)
    before = {"nll": np.full(documents, 3.0 * tokens), "tokens": np.full(documents, tokens * 1.0)}
    after = {**before, "nll": before["nll"] + sums, "kl": sums, "flipped": np.zeros(documents)}
    task = "text-generation"
    return Scores(task, ids, before), Scores(task, ids, after, {"token_kl": each.reshape(-1)})


def only(pair: tuple[Scores, Scores], **budgets: float) -> Judgement:
    (judgement,) = judge_divergence(*pair, Budgets(**budgets), EVIDENCE)
    return judgement


def test_flips_need_evidence_like_any_budget() -> None:
    assert only(classes(2000, flipped=20), flip_ratio=0.02).verdict is PASS
    assert only(classes(2000, flipped=200), flip_ratio=0.02).verdict is FAIL
    thin = only(classes(60), flip_ratio=0.02)  # none flips, and 60 cannot show 2 %
    assert thin.verdict is INCONCLUSIVE
    assert thin.measured == 0


def test_the_number_that_would_decide_does_decide() -> None:
    thin = only(classes(60), flip_ratio=0.02)
    assert thin.needed is not None
    assert f"{thin.needed:,}" in thin.reason
    assert only(classes(thin.needed), flip_ratio=0.02).verdict is PASS
    close = only(classes(400, flipped=6), flip_ratio=0.02)
    assert close.verdict is INCONCLUSIVE
    assert close.needed is not None
    rng = np.random.default_rng(0)
    passed = 0
    for _ in range(400):
        hits = int(rng.binomial(close.needed, 7 / 401))
        passed += proportion_bounds(hits, close.needed, 0.95)[1] <= 0.02
    assert 0.74 <= passed / 400 <= 0.88  # planned for 80 %
    before, after = classes(300, kl=0.0)
    after.values["kl"][7] = 0.6  # one answer carries all of it: a normal would need three
    nats = only((before, after), kl_mean_nats=0.005)
    assert nats.verdict is INCONCLUSIVE
    assert nats.needed is not None
    assert nats.needed > 301
    ids = tuple(map(str, range(10 * 300)))
    more = tuple(
        replace(s, ids=ids, values={n: np.tile(v, 10) for n, v in s.values.items()})
        for s in (before, after)
    )
    assert only(more, kl_mean_nats=0.005).verdict is PASS  # type: ignore[arg-type]
    assert nats.needed < 3000


def test_a_flip_from_one_wrong_answer_to_another_counts() -> None:
    before, after = classes(400)
    before.values["prediction"][:40] = 9
    before.values["correct"][:40] = 0
    after.values["prediction"][:40] = 8
    after.values["correct"][:40] = 0
    (flips, *_) = divergences(before, after, EVIDENCE)
    assert flips.metric == "flip_ratio"
    assert flips.measured == pytest.approx(0.1)


def test_a_model_without_an_answer_flips_even_beside_another_without() -> None:
    before, after = classes(100)
    before.values["prediction"][:10] = after.values["prediction"][:10] = -1
    assert divergences(before, after, EVIDENCE)[0].measured == pytest.approx(0.1)


def test_bounds_of_a_share_are_clopper_and_pearsons() -> None:
    for hits, count in ((0, 50), (3, 50), (50, 50), (17, 400)):
        # two-sided 90 % is one-sided 95 % on each side
        exact = binomtest(hits, count).proportion_ci(0.90, "exact")
        low, high = proportion_bounds(hits, count, 0.95)
        if 0 < hits < count:
            assert (low, high) == pytest.approx((exact.low, exact.high))
    assert proportion_bounds(0, 50, 0.95)[0] == 0
    assert proportion_bounds(0, 50, 0.95)[1] == pytest.approx(1 - 0.05 ** (1 / 50))
    assert proportion_bounds(50, 50, 0.95)[1] == 1


@pytest.mark.parametrize("make", [classes, language])
def test_mean_divergence_passes_and_fails_by_its_interval(make: object) -> None:
    pair = make(400, kl=0.02)  # type: ignore[operator]
    assert only(pair, kl_mean_nats=0.03).verdict is PASS
    assert only(pair, kl_mean_nats=0.01).verdict is FAIL
    assert only(make(5, kl=0.02), kl_mean_nats=0.03).verdict is INCONCLUSIVE  # type: ignore[operator]


def test_the_tail_vetoes_what_the_mean_forgives() -> None:
    before, after = language(200, 500)
    tail = after.arrays["token_kl"]
    assert only((before, after), kl_p999_nats=0.5).verdict is PASS
    tail[::400] = 8.0  # one token in four hundred answers something else altogether
    after.values["kl"] = tail.reshape(200, 500).astype(float).sum(1)
    assert only((before, after), kl_mean_nats=0.1).verdict is PASS
    vetoed = only((before, after), kl_p999_nats=0.5)
    assert vetoed.verdict is FAIL
    assert vetoed.measured == 8.0


def test_a_tail_in_one_document_is_not_shown_to_be_a_tail() -> None:
    before, after = language(200, 500)
    after.arrays["token_kl"][:120] = 8.0  # above the percentile, all of it in the first document
    vetoed = only((before, after), kl_p999_nats=0.5)
    assert vetoed.measured == 8.0
    assert vetoed.verdict is INCONCLUSIVE


def test_the_clustered_bound_is_crossed_as_seldom_as_promised() -> None:
    rng = np.random.default_rng(5)
    truth = 1 + 1.2816  # 0.9 of the sum below, of unit variance in all: N(0, 1) shifted by one
    crossed = 0
    owner = np.repeat(np.arange(60), 30)
    for seed in range(200):
        shared = rng.normal(1, math.sqrt(0.7), 60)[owner]
        values = shared + rng.normal(0, math.sqrt(0.3), 1800)
        crossed += clustered_quantile_low(values, owner, 0.9, 0.95, seed=seed) > truth
    assert crossed <= 22  # 5 % of 200 and four standard deviations


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_divergence_that_is_no_number_fails(value: float) -> None:
    before, after = classes(400)
    after.values["kl"][7] = value
    found = judge_divergence(before, after, Budgets(kl_mean_nats=9, kl_p999_nats=9), EVIDENCE)
    assert [j.verdict for j in found] == [FAIL, FAIL]
    assert "not a number" in found[0].reason


def test_an_identical_model_passes_every_budget_on_answers() -> None:
    for name in ("mobile", "edge", "cloud-cpu"):
        target = load_target(name)
        before, after = classes(4000, kl=0.0)
        judged = judge_answers(before, after, target)
        assert judged
        assert {j.verdict for j in judged} == {PASS}, name
        documents, same = language(90, kl=0.0)
        assert {j.verdict for j in judge_answers(documents, same, target)} == {PASS}, name


def _one_class_lost(count: int, lost: int) -> tuple[Scores, Scores]:
    before, after = classes(count)
    of_c = np.flatnonzero(np.asarray(after.slices["label"]) == "c")[:lost]
    after.values["correct"][of_c] = 0
    return before, after


def test_the_worst_class_is_named_and_vetoes() -> None:
    budgets = Budgets(worst_slice_drop_points=5)
    (judgement,) = judge_slices(*_one_class_lost(1200, 60), budgets, EVIDENCE)
    assert judgement.verdict is FAIL
    assert judgement.measured == pytest.approx(20)
    assert judgement.count == 300
    assert "'c'" in judgement.reason
    (judgement,) = judge_slices(*_one_class_lost(1200, 9), budgets, EVIDENCE)
    assert judgement.verdict is PASS
    (judgement,) = judge_slices(*_one_class_lost(100, 2), budgets, EVIDENCE)
    assert judgement.verdict is INCONCLUSIVE  # 2 of 25 may be chance


def test_a_small_group_that_collapses_is_seen_and_a_wobble_in_one_is_not() -> None:
    budgets = Budgets(worst_slice_drop_points=5)
    before, after = classes(4000)
    names = tuple("rare" if i < 15 else "common" for i in range(4000))
    after = replace(after, slices={"kind": names})
    after.values["correct"][:2] = 0
    (judgement,) = judge_slices(before, after, budgets, EVIDENCE)
    assert judgement.verdict is PASS
    assert "1 smaller ones" in judgement.reason
    after.values["correct"][:15] = 0
    (judgement,) = judge_slices(before, after, budgets, EVIDENCE)
    assert judgement.verdict is FAIL
    assert judgement.measured == 100
    assert "kind 'rare' (15 examples)" in judgement.reason


def test_a_grouping_that_nobody_could_judge_stays_open() -> None:
    budgets = Budgets(worst_slice_drop_points=5)
    before, after = classes(400)
    lonely = replace(after, slices={"kind": tuple(map(str, range(400)))})
    (judgement,) = judge_slices(before, lonely, budgets, EVIDENCE)
    assert judgement.verdict is INCONCLUSIVE
    beside = replace(after, slices={**after.slices, **lonely.slices})
    (judgement,) = judge_slices(before, beside, budgets, EVIDENCE)
    assert judgement.verdict is INCONCLUSIVE
    assert "No group of kind" in judgement.reason
    assert judge_slices(before, replace(after, slices={}), budgets, EVIDENCE) == []


def test_many_groups_do_not_convict_by_chance() -> None:
    """Fifty groups that truly lose as much as is allowed: hardly ever is one shown to lose more."""
    rng = np.random.default_rng(3)
    convicted = 0
    names = tuple(str(i % 50) for i in range(5000))
    ids = tuple(map(str, range(5000)))
    budgets = Budgets(worst_slice_drop_points=5)
    for _ in range(100):
        before = Scores("text-classification", ids, {"correct": np.ones(5000)}, {}, {"g": names})
        after = replace(before, values={"correct": (rng.random(5000) > 0.05) * 1.0})
        (judgement,) = judge_slices(before, after, budgets, EVIDENCE)
        convicted += judgement.verdict is FAIL
    assert convicted <= 12  # 5 % of 100 and a little more than three standard deviations


def test_a_language_models_slices_are_groups_of_documents() -> None:
    before, after = language(60)
    groups = tuple("tests" if i % 3 == 0 else "code" for i in range(60))
    worse = np.asarray([g == "tests" for g in groups])
    after.values["nll"][worse] += 500 * 0.2
    after = replace(after, slices={"kind": groups})
    budgets = Budgets(worst_slice_perplexity_ratio=1.1)
    (judgement,) = judge_slices(before, after, budgets, EVIDENCE)
    assert judgement.verdict is FAIL
    assert judgement.measured == pytest.approx(math.exp(0.22), rel=0.02)
    assert "'tests'" in judgement.reason


def test_a_slices_perplexity_is_over_its_own_tokens_and_bounded_among_many() -> None:
    """Each group's documents have their own length; the bootstrap has to reach far quantiles."""
    documents, groups = 400, 20
    ids, names = tuple(map(str, range(documents))), tuple(f"g{i % 20:02}" for i in range(documents))
    group = np.arange(documents) % groups
    tokens = 100.0 * (1 + group)
    lost = tokens * np.random.default_rng(4).gamma(1, 0.05, documents)
    before = {"nll": 3 * tokens, "tokens": tokens}
    after = {"nll": 3 * tokens + lost, "tokens": tokens}
    reference = Scores("text-generation", ids, before)
    candidate = Scores("text-generation", ids, after, {}, {"kind": names})
    few = slices_of(reference, candidate, Evidence(resamples=200))
    assert len(few) == groups
    for found in few:
        mine = group == int(found.name[1:])
        assert found.count == 20
        assert found.loss == pytest.approx(math.exp(lost[mine].sum() / tokens[mine].sum()))
        assert found.low < found.loss < found.high
    # 1 − 0.05 / 20 lies beyond what 200 resamples can tell, so they are not what is taken
    assert few == slices_of(reference, candidate, Evidence(resamples=5000))
