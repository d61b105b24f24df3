"""Is a new model's quality no worse than an old one's, on the examples that both were scored on?

Paired non-inferiority as against the original, with the old model's answers in the place of the
original's. A judgement's `reference` is the old artifact's figure, its `candidate` the new one's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from exporter.budget import BUDGET_KINDS, Budget, BudgetKind
from exporter.judge.divergence import judge_divergence
from exporter.judge.quality import judge_quality
from exporter.judge.regression import equal, not_compared
from exporter.judge.slices import judge_slices
from exporter.judge.statistics import MINIMUM_CLUSTERS, ratio_bounds
from exporter.judge.verdict import Judgement, claim, decide, judged
from exporter.models.scores import Scores
from exporter.target import Evidence, Target

COSINE = BudgetKind("embedding_cosine_drop", "cosine drop", "", "below", ("feature-extraction",))


@dataclass(frozen=True)
class Common:
    """The scores of both on the examples they share, in one order.

    Attributes:
        relabelled: examples left out because their label is not the same any more.
    """

    old: Scores
    new: Scores
    relabelled: int


def common_examples(old: Scores, new: Scores) -> Common:
    """What both score: the same content under the same label, in the order of `new`."""
    where = {key: i for i, key in enumerate(_occurrences(old.ids))}
    pairs = [(where[key], i) for i, key in enumerate(_occurrences(new.ids)) if key in where]
    known = len(pairs)
    if "label" in old.values and "label" in new.values:
        before, after = old.values["label"], new.values["label"]
        pairs = [(i, j) for i, j in pairs if before[i] == after[j]]
    return Common(
        _rows(old, [i for i, _ in pairs]), _rows(new, [j for _, j in pairs]), known - len(pairs)
    )


def judge_quality_regression(
    old: Scores, new: Scores, target: Target, *, same: bool, same_reference: bool
) -> list[Judgement]:
    """One judgement a quality metric: is the new model no worse than the old one?

    Args:
        target: its margins and its confidence are the rule.
        same: both are one file on one runtime, which needs no statistics.
        same_reference: both were made from one original. A cosine is to one's own original:
            with two of them its difference compares nothing and is left out.
    """
    metric = "perplexity_ratio" if new.task == "text-generation" else "accuracy_drop_points"
    limit = getattr(target.budgets, metric)
    neutral = BUDGET_KINDS[metric].origin
    budget = Budget(BUDGET_KINDS[metric], neutral if limit is None else limit)
    embeds = new.task == "feature-extraction" and same_reference
    cosine = _cosine_budget(target) if embeds else None
    both = common_examples(old, new)
    obstacle = _obstacle(old, new, both, limit)
    if same or obstacle:
        kept = [b for b in (budget, cosine) if b is not None]
        figures = [(headline(old), headline(new)), (_mean(old, "cosine"), _mean(new, "cosine"))]
        return [
            equal(b, before, after, len(new))
            if same
            else not_compared(b, before, after, obstacle, b.kind is COSINE or limit is not None)
            for b, (before, after) in zip(kept, figures, strict=False)
        ]
    # the cosine of `judge_quality` is to the original, not to the old artifact
    budgets = target.budgets.model_copy(update={"embedding_cosine": None})
    made = [
        _renamed(judgement)
        for judges in (judge_quality, judge_divergence, judge_slices)
        for judgement in judges(both.old, both.new, budgets, target.evidence)
    ]
    if cosine is not None and "cosine" in both.old.values and "cosine" in both.new.values:
        made.append(_cosine(both.old, both.new, cosine, target.evidence))
    return made


def headline(scores: Scores) -> float | None:
    """The figure that a model's quality is shown by: perplexity, or percent right."""
    if not len(scores):
        return None
    summary = scores.summary()
    return summary.get("perplexity", 100 * float(scores.values["correct"].mean()))


def _obstacle(old: Scores, new: Scores, both: Common, limit: float | None) -> str:
    """Why the two sets of answers cannot be judged pair by pair, or ""."""
    count = len(both.new)
    relabelled = f" ({both.relabelled:,} more have another label now)" if both.relabelled else ""
    again = "export both with the same test data"
    if limit is None:
        return (
            "the profile of the new artifact sets no margin for it: "
            "set one, so that it is said how much may be lost."
        )
    if not count:
        return f"the two were scored on different examples{relabelled}: {again}."
    if count < MINIMUM_CLUSTERS:
        return f"both score only {count} examples{relabelled}: {again}."
    if new.task == "feature-extraction" and not count == len(old) == len(new):
        return (
            f"both score only {count:,} examples{relabelled}, and recall depends on all documents "
            f"searched: {again}."
        )
    if "tokens" in both.new.values and not np.array_equal(
        both.old.values.get("tokens", np.zeros(0)), both.new.values["tokens"]
    ):
        return (
            "the two count different tokens in the same texts, so a perplexity means another "
            "thing for each: compare them by a task that both are used for."
        )
    return ""


def _cosine_budget(target: Target) -> Budget | None:
    limit = target.budgets.embedding_cosine
    return None if limit is None else Budget(COSINE, round(1 - limit, 12))


def _cosine(old: Scores, new: Scores, budget: Budget, evidence: Evidence) -> Judgement:
    """How much farther from their common original the new embeddings lie."""
    drops = old.values["cosine"] - new.values["cosine"]
    count = len(drops)
    drop, low, high = ratio_bounds(
        drops,
        np.ones(count),
        confidence=evidence.confidence,
        resamples=evidence.resamples,
        seed=count,
    )
    verdict = decide("below", budget.limit, low, high)
    return judged(
        budget,
        measured=drop,
        low=low,
        high=high,
        reason=f"With {100 * evidence.confidence:g} % confidence "
        f"{claim(budget, verdict, low, high)} ({count:,} embeddings, to the same original).",
        reference=_mean(old, "cosine"),
        candidate=_mean(new, "cosine"),
        verdict=verdict,
        count=count,
    )


def _renamed(judgement: Judgement) -> Judgement:
    """The judge speaks of reference and candidate; here they are old and new."""
    reason = judgement.reason.replace("The reference's", "The old model's")
    return replace(judgement, reason=reason.replace("The candidate's", "The new model's"))


def _mean(scores: Scores, column: str) -> float | None:
    values = scores.values.get(column)
    return None if values is None or not len(values) else float(values.mean())


def _occurrences(ids: Iterable[str]) -> list[tuple[str, int]]:
    """Each id with how often it came before: equal rows are told apart by their order."""
    seen: Counter[str] = Counter()
    keys = []
    for identity in ids:
        keys.append((identity, seen[identity]))
        seen[identity] += 1
    return keys


def _rows(scores: Scores, index: list[int]) -> Scores:
    """Some examples; without the divergence, which is to each one's own original."""
    return Scores(
        scores.task,
        tuple(scores.ids[i] for i in index),
        {name: column[index] for name, column in scores.values.items() if name != "kl"},
        slices={name: tuple(group[i] for i in index) for name, group in scores.slices.items()},
    )
