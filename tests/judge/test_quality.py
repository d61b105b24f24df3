"""Quality verdicts on per-example scores of each task."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from exporter.budget import Budgets
from exporter.errors import DataError
from exporter.judge.quality import judge_quality
from exporter.judge.verdict import FAIL, INCONCLUSIVE, PASS, Judgement
from exporter.models.scores import Scores
from exporter.target import Evidence

EVIDENCE = Evidence()
BUDGETS = Budgets(
    accuracy_drop_points=1.0, perplexity_ratio=1.03, embedding_cosine=0.95, latency_ratio=0.5
)


def _ids(count: int) -> tuple[str, ...]:
    return tuple(f"{i:064x}" for i in range(count))


def _classified(correct: np.ndarray, task: str = "text-classification") -> Scores:
    values = {"correct": correct.astype(np.float64), "nll": np.where(correct, 0.1, 3.0)}
    return Scores(task, _ids(len(correct)), values)


def _flipped(correct: np.ndarray, lost: int, gained: int) -> np.ndarray:
    """`correct` with so many right answers made wrong and wrong ones made right."""
    out = correct.copy()
    out[np.flatnonzero(correct)[:lost]] = False
    out[np.flatnonzero(~correct)[:gained]] = True
    return out


def _accuracy(count: int, lost: int, gained: int) -> Judgement:
    before = np.arange(count) % 5 != 0
    (judgement,) = judge_quality(
        _classified(before), _classified(_flipped(before, lost, gained)), BUDGETS, EVIDENCE
    )
    return judgement


def test_accuracy_passes_fails_and_stays_open_by_the_evidence() -> None:
    assert _accuracy(4000, 60, 55).verdict is PASS
    assert _accuracy(4000, 200, 40).verdict is FAIL
    at_margin = _accuracy(4000, 80, 40)
    assert at_margin.verdict is INCONCLUSIVE
    assert at_margin.measured == pytest.approx(1.0)
    assert at_margin.reference == pytest.approx(80.0)
    assert at_margin.candidate == pytest.approx(79.0)


def test_too_few_examples_are_inconclusive_and_say_how_many_are_needed() -> None:
    small = _accuracy(200, 2, 2)
    assert small.verdict is INCONCLUSIVE
    assert small.needed is not None
    assert small.needed > 200
    assert re.search(rf"{small.needed:,} examples", small.reason)
    # with that many and the same share of flips, the budget is met
    scale = small.needed / 200
    assert _accuracy(small.needed, round(2 * scale), round(2 * scale)).verdict is PASS
    # a third of them would not do, and a candidate that flips more answers needs more
    assert (
        _accuracy(small.needed // 3, round(2 * scale / 3), round(2 * scale / 3)).verdict is not PASS
    )
    restless = _accuracy(200, 4, 4)
    assert restless.needed is not None
    assert restless.needed > 1.3 * small.needed


def test_an_identical_model_passes_only_with_enough_examples() -> None:
    assert _accuracy(100, 0, 0).verdict is INCONCLUSIVE
    assert _accuracy(400, 0, 0).verdict is PASS


def test_swapping_reference_and_candidate_mirrors() -> None:
    before = np.arange(1000) % 3 != 0
    a, b = _classified(before), _classified(_flipped(before, 30, 12))
    (one,), (other,) = (judge_quality(*pair, BUDGETS, EVIDENCE) for pair in ((a, b), (b, a)))
    assert one.measured == pytest.approx(-other.measured)
    assert one.low == pytest.approx(-other.high)
    assert one.high == pytest.approx(-other.low)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_answer_that_is_no_number_never_passes(value: float) -> None:
    before = np.arange(4000) % 5 != 0
    good, bad = _classified(before), _classified(before)
    bad.values["nll"][17] = value
    (candidate_broken,) = judge_quality(good, bad, BUDGETS, EVIDENCE)
    assert candidate_broken.verdict is FAIL
    assert "not a number" in candidate_broken.reason
    (reference_broken,) = judge_quality(bad, good, BUDGETS, EVIDENCE)
    assert reference_broken.verdict is INCONCLUSIVE
    (both,) = judge_quality(bad, bad, BUDGETS, EVIDENCE)
    assert both.verdict is INCONCLUSIVE


def _language(nll_per_token: np.ndarray, tokens: np.ndarray) -> Scores:
    return Scores(
        "text-generation",
        _ids(len(tokens)),
        {"nll": nll_per_token * tokens, "tokens": tokens, "correct": tokens // 2},
    )


def _perplexity(documents: int, loss: float, spread: float = 0.01) -> Judgement:
    rng = np.random.default_rng(documents)
    tokens = rng.integers(50, 2000, documents).astype(np.float64)
    before = rng.normal(3.5, 0.4, documents)
    after = before + loss + rng.normal(0, spread, documents)
    (judgement,) = judge_quality(
        _language(before, tokens), _language(after, tokens), BUDGETS, EVIDENCE
    )
    return judgement


def test_perplexity_is_judged_over_documents() -> None:
    passed = _perplexity(80, math.log(1.01))
    assert passed.verdict is PASS
    assert passed.measured == pytest.approx(1.01, abs=0.005)
    assert passed.candidate / passed.reference == pytest.approx(passed.measured)
    assert _perplexity(80, math.log(1.06)).verdict is FAIL
    wide = _perplexity(40, math.log(1.01), spread=0.2)
    assert wide.verdict is INCONCLUSIVE
    assert wide.needed > 40


def test_few_documents_never_pass_even_when_identical() -> None:
    few = _perplexity(10, 0.0, spread=0.0)
    assert few.verdict is INCONCLUSIVE
    assert few.needed == 20
    same = _perplexity(20, 0.0, spread=0.0)
    assert same.verdict is PASS
    assert same.measured == 1


def test_a_broken_language_model_fails_without_a_number() -> None:
    tokens = np.full(30, 100.0)
    good = _language(np.full(30, 3.0), tokens)
    bad = _language(np.where(np.arange(30) == 4, np.nan, 3.0), tokens)
    (judgement,) = judge_quality(good, bad, BUDGETS, EVIDENCE)
    assert judgement.verdict is FAIL
    assert judgement.measured is None
    (huge,) = judge_quality(good, _language(np.full(30, 1e4), tokens), BUDGETS, EVIDENCE)
    assert huge.verdict is FAIL


def _embedded(cosine: np.ndarray, correct: np.ndarray) -> Scores:
    return Scores(
        "feature-extraction", _ids(len(cosine)), {"correct": correct * 1.0, "cosine": cosine}
    )


def test_embeddings_are_judged_by_recall_and_by_cosine() -> None:
    rng = np.random.default_rng(0)
    right = rng.random(2000) < 0.7
    reference = _embedded(np.ones(2000), right)
    close = 1 - rng.beta(2, 60, 2000)
    drop, cosine = judge_quality(reference, _embedded(close, right), BUDGETS, EVIDENCE)
    assert (drop.metric, drop.verdict) == ("accuracy_drop_points", PASS)
    assert (cosine.metric, cosine.verdict) == ("embedding_cosine", PASS)
    assert cosine.low < close.mean() < cosine.high
    far = judge_quality(reference, _embedded(close - 0.1, right), BUDGETS, EVIDENCE)[1]
    assert far.verdict is FAIL
    few = _embedded(close[:10], right[:10])
    assert judge_quality(few, few, BUDGETS, EVIDENCE)[1].verdict is INCONCLUSIVE
    nan = close.copy()
    nan[5] = np.nan
    recall, broken = judge_quality(reference, _embedded(nan, right), BUDGETS, EVIDENCE)
    assert recall.verdict is FAIL
    assert (broken.verdict, broken.measured) == (FAIL, None)


def _cosine(count: int, spread: float) -> Judgement:
    """Embeddings whose cosines lie evenly around 0.955."""
    cosines = 0.955 + spread * np.linspace(-1, 1, count)
    scores = _embedded(cosines, np.ones(count, bool))
    return judge_quality(scores, scores, BUDGETS, EVIDENCE)[1]


def test_embeddings_say_how_many_would_decide() -> None:
    few = _cosine(25, 0.03)
    assert few.verdict is INCONCLUSIVE
    assert few.needed is not None
    assert f"{few.needed:,} examples" in few.reason
    assert _cosine(few.needed, 0.03).verdict is PASS
    assert few.needed < 100
    # it goes by the square of the spread
    wide = _cosine(25, 0.045)
    assert wide.needed == pytest.approx(1.5**2 * few.needed, abs=4)
    assert _cosine(wide.needed, 0.045).verdict is PASS


def test_budgets_that_are_not_set_are_not_judged() -> None:
    scores = _classified(np.ones(50, bool))
    assert judge_quality(scores, scores, Budgets(latency_ratio=0.5), EVIDENCE) == []


def test_evidence_that_does_not_pair_is_refused() -> None:
    scores = _classified(np.ones(50, bool))
    shuffled = replace(scores, ids=scores.ids[::-1])
    half = replace(scores, values={**scores.values, "correct": np.full(50, 0.5)})
    lacking = replace(scores, values={"nll": np.zeros(50)})
    empty = Scores("text-classification", (), {"correct": np.zeros(0)})
    for before, after in ((scores, shuffled), (scores, half), (scores, lacking), (empty, empty)):
        with pytest.raises(DataError):
            judge_quality(before, after, BUDGETS, EVIDENCE)
    longer = _language(np.ones(30), np.full(30, 9.0)), _language(np.ones(30), np.full(30, 8.0))
    with pytest.raises(DataError):
        judge_quality(*longer, BUDGETS, EVIDENCE)
