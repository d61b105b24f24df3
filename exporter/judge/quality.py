"""Quality: is the candidate shown to be no worse than the reference by more than the margin?

Always on the same examples, pair by pair, with one-sided bounds: PASS when the evidence rules
out a loss beyond the margin, FAIL when it rules out a loss within it, else INCONCLUSIVE.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from exporter.budget import Budget, Budgets
from exporter.errors import DataError
from exporter.judge.statistics import (
    MINIMUM_CLUSTERS,
    mcnemar_p,
    paired_difference,
    ratio_bounds,
    required_clusters,
    required_examples,
)
from exporter.judge.verdict import (
    FAIL,
    INCONCLUSIVE,
    PASS,
    Judgement,
    Verdict,
    claim,
    decide,
    judged,
)
from exporter.models.scores import Scores
from exporter.target import Evidence

Judge = Callable[[Scores, Scores, Budget, Evidence], Judgement]


def judge_quality(
    reference: Scores, candidate: Scores, budgets: Budgets, evidence: Evidence
) -> list[Judgement]:
    """One judgement for each quality budget of the scores' task.

    Args:
        candidate: scored on the same examples in the same order; for feature-extraction with
            the `cosine` that `Task.relate` adds.

    Raises:
        DataError: the two do not score the same examples, or a column is missing or impossible.
    """
    _require_pairs(reference, candidate)
    judges: dict[str, Judge] = {
        "accuracy_drop_points": _accuracy,
        "perplexity_ratio": _perplexity,
        "embedding_cosine": _cosine,
    }
    return [
        judges[budget.kind.metric](reference, candidate, budget, evidence)
        for budget in budgets.for_task(reference.task)
        if budget.kind.metric in judges
    ]


def _accuracy(
    reference: Scores, candidate: Scores, budget: Budget, evidence: Evidence
) -> Judgement:
    before, after = _column(reference, "correct"), _column(candidate, "correct")
    count = len(before)
    lost = int(((before == 1) & (after == 0)).sum())
    gained = int(((before == 0) & (after == 1)).sum())
    lows, highs = paired_difference(lost, gained, count, evidence.confidence)
    low, high = 100 * float(lows), 100 * float(highs)
    drop = 100 * (lost - gained) / count
    verdict, broken = _not_numbers(reference, candidate, "nll", "cosine")
    if not broken:
        verdict = decide(budget.kind.good, budget.limit, low, high)
    flips = f"answers lost {lost:,}, won {gained:,}, of {count:,}"
    reason = broken or (
        f"{_sure(evidence)} {claim(budget, verdict, low, high)} ({flips}; "
        f"McNemar p = {mcnemar_p(lost, gained):.2g})."
    )
    needed = None
    if verdict is INCONCLUSIVE and not broken:
        needed = required_examples(
            # one more flip than seen: a short test that saw none has not shown there are none
            (lost + gained + 1) / (count + 1),
            budget.limit / 100,
            evidence.confidence,
            drop=max(drop, 0.0) / 100,
        )
        needed = _more(needed, count)
        reason += _advice(needed, count, "examples")
    return judged(
        budget,
        measured=drop,
        low=low,
        high=high,
        reason=reason,
        reference=100 * float(before.mean()),
        candidate=100 * float(after.mean()),
        verdict=verdict,
        value_unit="%",
        count=count,
        needed=needed,
    )


def _perplexity(
    reference: Scores, candidate: Scores, budget: Budget, evidence: Evidence
) -> Judgement:
    tokens = _column(reference, "tokens")
    if not np.array_equal(tokens, _column(candidate, "tokens")) or not (tokens > 0).all():
        raise DataError(
            "the evidence",
            "must count the same tokens, at least one an example, for both models",
            remedy="score both models again.",
        )
    before, after = _column(reference, "nll"), _column(candidate, "nll")
    verdict, broken = _not_numbers(reference, candidate, "nll")
    estimate, low, high = ratio_bounds(
        after - before,
        tokens,
        confidence=evidence.confidence,
        resamples=evidence.resamples,
        seed=len(tokens),
    )
    log_high = high
    ratio, low, high = _exp(estimate), _exp(low), _exp(high)
    count = len(tokens)
    few = count < MINIMUM_CLUSTERS
    if not broken:
        verdict = INCONCLUSIVE if few else decide(budget.kind.good, budget.limit, low, high)
    reason = broken or (
        f"{_sure(evidence)} {claim(budget, verdict, low, high)} "
        f"({count:,} documents, {int(tokens.sum()):,} tokens)."
    )
    needed = None
    if verdict is INCONCLUSIVE and not broken:
        needed = required_clusters(
            after - before, tokens, math.log(budget.limit), evidence.confidence, high=log_high
        )
        needed = _more(needed, count, MINIMUM_CLUSTERS)
        reason += _advice(needed, count, "documents")
    return judged(
        budget,
        measured=ratio,
        low=low,
        high=high,
        reason=reason,
        reference=_exp(float(before.sum() / tokens.sum())),
        candidate=_exp(float(after.sum() / tokens.sum())),
        verdict=verdict,
        count=count,
        needed=needed,
    )


def _cosine(reference: Scores, candidate: Scores, budget: Budget, evidence: Evidence) -> Judgement:
    cosines = _column(candidate, "cosine")
    count = len(cosines)
    ones = np.ones(count)
    mean, low, high = ratio_bounds(
        cosines, ones, confidence=evidence.confidence, resamples=evidence.resamples, seed=count
    )
    verdict, broken = _not_numbers(None, candidate, "cosine")
    if not broken:
        few = count < MINIMUM_CLUSTERS
        verdict = INCONCLUSIVE if few else decide(budget.kind.good, budget.limit, low, high)
    reason = broken or (
        f"{_sure(evidence)} {claim(budget, verdict, low, high)} ({count:,} embeddings)."
    )
    needed = None
    if verdict is INCONCLUSIVE and not broken:
        needed = required_clusters(
            1 - cosines, ones, 1 - budget.limit, evidence.confidence, high=1 - low
        )
        needed = _more(needed, count, MINIMUM_CLUSTERS)
        reason += _advice(needed, count, "examples")
    return judged(
        budget,
        measured=mean,
        low=max(low, -1.0),
        high=min(high, 1.0),
        reason=reason,
        reference=1.0,
        candidate=mean,
        verdict=verdict,
        count=count,
        needed=needed,
    )


def _require_pairs(reference: Scores, candidate: Scores) -> None:
    if reference.task != candidate.task or reference.ids != candidate.ids:
        raise DataError(
            "the evidence",
            "must score the same examples in the same order for both models",
            got=f"{len(reference):,} and {len(candidate):,} examples",
            remedy="score both models again.",
        )
    if not len(reference):
        raise DataError("the evidence", "must score at least one example", remedy="give more data.")


def _column(scores: Scores, name: str) -> NDArray[np.float64]:
    values = scores.values.get(name)
    if values is None or values.shape != (len(scores),):
        raise DataError("the evidence", f"must have the column '{name}'", remedy="score again.")
    if name == "correct" and scores.task != "text-generation" and not np.isin(values, (0, 1)).all():
        raise DataError("the evidence", "must say 0 or 1 for 'correct'", remedy="score again.")
    return values


def _not_numbers(reference: Scores | None, candidate: Scores, *names: str) -> tuple[Verdict, str]:
    """A verdict and a sentence when a model answered NaN or inf anywhere; else "" to go on."""
    for scores, verdict, who in (
        (reference, INCONCLUSIVE, "reference"),
        (candidate, FAIL, "candidate"),
    ):
        columns = scores.values if scores is not None else {}
        given = [~np.isfinite(columns[name]) for name in names if name in columns]
        wrong = int(np.any(given, axis=0).sum()) if given else 0
        if wrong:
            some = f"{wrong:,} of {len(candidate):,} examples"
            return verdict, f"The {who}'s answer to {some} is not a number."
    return PASS, ""


def _sure(evidence: Evidence) -> str:
    return f"With {100 * evidence.confidence:g} % confidence"


def _more(needed: int | None, count: int, minimum: int = 0) -> int | None:
    return None if needed is None else max(needed, minimum, count + 1)


def _advice(needed: int | None, count: int, what: str) -> str:
    if needed is None:
        return f" What {count:,} {what} show lies beyond the limit: try a milder candidate."
    return f" To decide takes about {needed:,} {what}; there are {count:,}."


def _exp(log: float) -> float:
    """exp that overflows to inf, as perplexities of broken models do."""
    with np.errstate(over="ignore"):
        return float(np.exp(log))
