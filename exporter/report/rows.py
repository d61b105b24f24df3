"""Rows of the budget table: one judgement as every format of the report shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from exporter.report.document import Report
from exporter.report.wording import (
    ABSENT,
    budget_used,
    limit,
    measured,
    plain,
    side,
    title_of,
)


@dataclass(frozen=True)
class BudgetRow:
    """One budget in words.

    Attributes:
        interval: confidence interval of `measured`, "" where the value is exact.
        used: share of the budget that `measured` uses, 1 at the limit; None when unknown.
        used_low, used_high: the same for the ends of the interval, the better end first.
    """

    metric: str
    title: str
    reference: str
    candidate: str
    measured: str
    interval: str
    limit: str
    margin: str
    verdict: str
    reason: str
    used: float | None
    used_low: float | None
    used_high: float | None


def budget_rows(report: Report) -> tuple[BudgetRow, ...]:
    """The report's judgements as rows, in their order."""
    return tuple(_row(judgement) for judgement in report.judgements)


def bare(figure: str) -> str:
    """A figure without its unit, which stands beside it already."""
    return figure.split(" ")[0].removesuffix("×")


def _row(judgement: Mapping[str, Any]) -> BudgetRow:
    metric = str(judgement.get("metric", ""))
    low, high = judgement.get("low"), judgement.get("high")
    ends = [measured(metric, low), measured(metric, high)]
    exact = ends[0] == ends[1] == measured(metric, judgement.get("measured"))
    known = [
        u for u in (budget_used(judgement, low), budget_used(judgement, high)) if u is not None
    ]
    verdict = str(judgement.get("verdict"))
    return BudgetRow(
        metric=metric,
        title=title_of(judgement),
        reference=side(judgement, "reference"),
        candidate=side(judgement, "candidate"),
        measured=measured(metric, judgement.get("measured")),
        interval="" if exact or ABSENT in ends else " to ".join(map(bare, ends)),
        limit=limit(metric, judgement.get("limit")),
        margin=measured(metric, judgement.get("margin")),
        verdict=verdict if verdict in ("PASS", "FAIL") else "INCONCLUSIVE",
        reason=plain(judgement.get("reason") or ""),
        used=budget_used(judgement, judgement.get("measured")),
        used_low=min(known) if len(known) == 2 else None,
        used_high=max(known) if len(known) == 2 else None,
    )
