"""The worst slice: a model that is as good on average may have given up on one class or group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporter.budget import Budget, Budgets
from exporter.judge.divergence import veto
from exporter.judge.statistics import MINIMUM_CLUSTERS, paired_difference, ratio_bounds
from exporter.judge.verdict import INCONCLUSIVE, PASS, Judgement, judged
from exporter.models.scores import Scores
from exporter.target import Evidence

MOST_RESAMPLES = 20_000
METRICS = ("worst_slice_drop_points", "worst_slice_perplexity_ratio")


@dataclass(frozen=True)
class Slice:
    """One group of examples.

    Attributes:
        grouping: what divides the examples: "label", or a column.
        name: of the group.
        count: examples in it.
        loss: points of accuracy lost, or the ratio of perplexities.
        low, high: bounds of `loss` that hold for all groups together.
    """

    grouping: str
    name: str
    count: int
    loss: float
    low: float
    high: float


def slices_of(reference: Scores, candidate: Scores, evidence: Evidence) -> list[Slice]:
    """Every group that can be judged, worst first.

    Accuracy has bounds for groups of any size, so that one that collapses is seen however small
    it is. A bootstrap over documents needs MINIMUM_CLUSTERS of them. Bounds are Bonferroni's: of
    all groups together one is off with probability 1 − confidence.
    """
    language = "tokens" in candidate.values
    least = MINIMUM_CLUSTERS if language else 1
    groups = [
        (grouping, name, members)
        for grouping, names in sorted(candidate.slices.items())
        for name, members in _members(names)
        if len(members) >= least
    ]
    confidence = 1 - (1 - evidence.confidence) / max(len(groups), 1)
    measure = _perplexity if language else _accuracy
    found = [
        Slice(grouping, name, len(m), *measure(reference, candidate, m, confidence, evidence))
        for grouping, name, m in groups
    ]
    return sorted(found, key=lambda s: (-_badness(s.loss), s.grouping, s.name))


def judge_slices(
    reference: Scores, candidate: Scores, budgets: Budgets, evidence: Evidence
) -> list[Judgement]:
    """The judgement of the worst slice, where a budget asks for it and examples have groups."""
    wanted = [b for b in budgets.for_task(reference.task) if b.kind.metric in METRICS]
    if not wanted or not candidate.slices:
        return []
    found = slices_of(reference, candidate, evidence)
    return [_judge(budget, found, candidate) for budget in wanted]


def _judge(budget: Budget, found: Sequence[Slice], scores: Scores) -> Judgement:
    """FAIL for any group shown to be beyond; else by the worst of those with enough examples."""
    large = [s for s in found if s.count >= MINIMUM_CLUSTERS]
    covered = {s.grouping for s in large}
    unseen = sorted(set(scores.slices) - covered)
    beyond = [s for s in found if s.low > budget.limit]
    if not large and not beyond:
        return _open(budget, f"No group has {MINIMUM_CLUSTERS} examples.")
    worst = max(beyond or large, key=lambda s: _badness(s.loss))
    few = sum(s.count for s in found if s not in large)
    reason = (
        f"Observed, as a veto: worst of {len(large)} groups with at least {MINIMUM_CLUSTERS} "
        f"examples is {worst.grouping} '{worst.name}' ({worst.count:,} examples)."
    )
    if beyond:
        reason = (
            f"Shown to be beyond in {worst.grouping} '{worst.name}' ({worst.count:,} examples), "
            f"one of {len(found)} groups."
        )
    elif few:
        reason += f" {len(found) - len(large)} smaller ones were looked at for a collapse only."
    verdict = veto(budget, worst.loss, worst.low)
    if not math.isfinite(worst.loss):
        verdict = INCONCLUSIVE
        reason = f"The answers in {worst.grouping} '{worst.name}' are not numbers."
    elif unseen and verdict is PASS:
        return _open(budget, f"No group of {', '.join(unseen)} has {MINIMUM_CLUSTERS} examples.")
    elif verdict is INCONCLUSIVE:
        reason += " It may be chance: more examples of that group would tell."
    return judged(
        budget,
        measured=worst.loss,
        low=worst.low,
        high=worst.high,
        reason=reason,
        verdict=verdict,
        count=worst.count,
    )


def _open(budget: Budget, why: str) -> Judgement:
    nothing = math.nan
    reason = f"{why} More test examples would tell."
    return judged(
        budget, measured=nothing, low=nothing, high=nothing, reason=reason, verdict=INCONCLUSIVE
    )


def _accuracy(
    reference: Scores,
    candidate: Scores,
    members: NDArray[np.int64],
    confidence: float,
    evidence: Evidence,
) -> tuple[float, float, float]:
    before = reference.values["correct"][members]
    after = candidate.values["correct"][members]
    lost, gained = int(((before == 1) & (after == 0)).sum()), int((before < after).sum())
    low, high = paired_difference(lost, gained, len(members), confidence)
    return 100 * (lost - gained) / len(members), 100 * float(low), 100 * float(high)


def _perplexity(
    reference: Scores,
    candidate: Scores,
    members: NDArray[np.int64],
    confidence: float,
    evidence: Evidence,
) -> tuple[float, float, float]:
    gained = (candidate.values["nll"] - reference.values["nll"])[members]
    # the bootstrap must reach a quantile that Bonferroni has pushed out
    resamples = min(max(evidence.resamples, math.ceil(20 / (1 - confidence))), MOST_RESAMPLES)
    bounds = ratio_bounds(
        gained,
        candidate.values["tokens"][members],
        confidence=confidence,
        resamples=resamples,
        seed=len(members),
    )
    with np.errstate(over="ignore"):
        ratio, low, high = (float(x) for x in np.exp(bounds))
    return ratio, low, high


def _members(names: Sequence[str]) -> list[tuple[str, NDArray[np.int64]]]:
    """Each group and the indices of its examples."""
    array = np.asarray(names)
    return [(str(name), np.flatnonzero(array == name)) for name in np.unique(array)]


def _badness(loss: float) -> float:
    """Losses in order, with what is not a number as the worst of all."""
    return math.inf if math.isnan(loss) else loss
