"""Divergence: how far a candidate's answers are from the reference's, right or wrong alike.

Accuracy can stay while every tenth answer changes; these figures see it. Flips and the mean are
budgets like any other. The tail is a veto: see `BudgetKind.veto`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from exporter.budget import Budget, Budgets
from exporter.judge.statistics import (
    MINIMUM_CLUSTERS,
    Floats,
    clustered_quantile_low,
    proportion_bounds,
    quantile_bounds,
    ratio_bounds,
    required_clusters,
    required_for_share,
)
from exporter.judge.verdict import FAIL, INCONCLUSIVE, PASS, Judgement, Verdict, claim, judged
from exporter.models.scores import Scores
from exporter.target import Evidence

TAIL = 0.999


@dataclass(frozen=True)
class Figure:
    """One figure of divergence with its bounds.

    Attributes:
        metric: a key of `BUDGET_KINDS`.
        low, high: one-sided confidence bounds.
        count: examples, documents or tokens behind it.
        needed: how many of them would show a value like this to be within a limit; None: none.
        what: what was counted, in words.
        broken: why it is no number; "" when it is one.
        few: too few examples for its bounds to mean anything.
    """

    metric: str
    measured: float
    low: float
    high: float
    count: int
    what: str
    broken: str = ""
    few: bool = False
    needed: Callable[[float], int | None] = lambda limit: None


def divergences(reference: Scores, candidate: Scores, evidence: Evidence) -> list[Figure]:
    """Every figure that the scores can tell.

    Args:
        candidate: related to the reference, see `Task.relate`; of the same examples.
    """
    found = []
    flips = _flips(reference, candidate)
    if flips is not None:
        count = len(flips)
        low, high = proportion_bounds(int(flips.sum()), count, evidence.confidence)
        what = f"{int(flips.sum()):,} of {count:,} answers differ"
        # one more than seen: a short test that saw none has not shown that there are none
        share = (int(flips.sum()) + 1) / (count + 1)
        needed = partial(required_for_share, share, confidence=evidence.confidence)
        mean = float(flips.mean())
        found.append(Figure("flip_ratio", mean, low, high, count, what, needed=needed))
    if "kl" in candidate.values:
        found += _kl(candidate, evidence)
    return found


def judge_divergence(
    reference: Scores, candidate: Scores, budgets: Budgets, evidence: Evidence
) -> list[Judgement]:
    """One judgement for each budget on flips and KL divergence that the scores can tell."""
    figures = {f.metric: f for f in divergences(reference, candidate, evidence)}
    return [
        _judge(figures[budget.kind.metric], budget, evidence)
        for budget in budgets.for_task(reference.task)
        if budget.kind.metric in figures
    ]


def veto(budget: Budget, measured: float, low: float) -> Verdict:
    """PASS within the limit as observed, FAIL when shown to be beyond, else INCONCLUSIVE."""
    if measured <= budget.limit:
        return PASS
    return FAIL if low > budget.limit else INCONCLUSIVE


def _judge(figure: Figure, budget: Budget, evidence: Evidence) -> Judgement:
    verdict = None
    if figure.broken:
        verdict = FAIL
    elif budget.kind.veto:
        verdict = veto(budget, figure.measured, figure.low)
    elif figure.few:
        verdict = INCONCLUSIVE
    made = judged(
        budget,
        measured=figure.measured,
        low=figure.low,
        high=figure.high,
        reason=figure.broken,
        candidate=figure.measured,
        reference=0.0,
        verdict=verdict,
        value_unit=budget.kind.unit,
        count=figure.count,
    )
    if figure.broken:
        return made
    if budget.kind.veto:
        said = f"Observed, as a veto: {budget.kind.title} is {figure.measured:.4g}"
        reason = f"{said} {budget.kind.unit}, limit {budget.limit:g} ({figure.what})."
    else:
        sure = f"With {100 * evidence.confidence:g} % confidence"
        shown = claim(budget, made.verdict, figure.low, figure.high)
        reason = f"{sure} {shown} ({figure.what})."
    if made.verdict is not INCONCLUSIVE:
        return replace(made, reason=reason)
    if budget.kind.veto:
        return replace(made, reason=f"{reason} It may be chance: more test data would tell.")
    needed = figure.needed(budget.limit)
    if needed is None:
        return replace(made, reason=f"{reason} Try a milder candidate.")
    needed = max(needed, MINIMUM_CLUSTERS, figure.count + 1)
    told = f"To decide takes about {needed:,} of them; there are {figure.count:,}."
    return replace(made, reason=f"{reason} {told}", needed=needed)


def _flips(reference: Scores, candidate: Scores) -> NDArray[np.bool_] | None:
    """Whether each answer differs, (n,); None where an example has no single answer."""
    if "tokens" in candidate.values:
        return None
    name = "prediction" if "prediction" in candidate.values else "correct"
    before, after = reference.values[name], candidate.values[name]
    return np.asarray((before != after) | (after < 0), np.bool_)


def _kl(candidate: Scores, evidence: Evidence) -> Iterator[Figure]:
    nats = candidate.values["kl"]
    count = len(nats)
    weights = candidate.values.get("tokens", np.ones(count))
    each = candidate.arrays.get("token_kl", nats).astype(np.float64)
    what = f"{count:,} {'documents' if 'tokens' in candidate.values else 'answers'}"
    if len(each) != count:
        what += f", {len(each):,} tokens"
    wrong = max(int((~np.isfinite(nats)).sum()), int((~np.isfinite(each)).sum()))
    broken = f"The divergence of {wrong:,} of {what} is not a number." if wrong else ""
    mean, low, high = ratio_bounds(
        nats, weights, confidence=evidence.confidence, resamples=evidence.resamples, seed=count
    )
    yield Figure(
        "kl_mean_nats",
        mean,
        max(low, 0.0),
        high,
        count,
        what,
        broken,
        few=count < MINIMUM_CLUSTERS,
        needed=partial(required_clusters, nats, weights, confidence=evidence.confidence, high=high),
    )
    tail, low, high = _tail(each, weights, evidence)
    yield Figure("kl_p999_nats", tail, low, high, len(each), what, broken)


def _tail(each: Floats, weights: Floats, evidence: Evidence) -> tuple[float, float, float]:
    """The 99.9th percentile and its bounds; tokens of one document hang together."""
    value, low, high = quantile_bounds(each, TAIL, evidence.confidence)
    if len(each) == len(weights) or not np.isfinite(value):
        return value, low, high
    owner = np.repeat(np.arange(len(weights)), weights.astype(np.int64))
    low = clustered_quantile_low(each, owner, TAIL, evidence.confidence, seed=len(weights))
    return value, low, float("inf")
