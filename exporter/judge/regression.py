"""Regression: may a new artifact take the place of an old one, by what it costs?

A cost is a ratio of new over old, and a regression is one shown to lie beyond 1 + tolerance. A
judgement's `reference` is the old artifact's figure, its `candidate` the new one's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from exporter.budget import Budget, BudgetKind
from exporter.devices.timing import Memory
from exporter.judge.measure import Measurements
from exporter.judge.verdict import INCONCLUSIVE, Judgement, claim, decide, judged
from exporter.target import Evidence

LATENCY = BudgetKind("latency_ratio", "latency", "×", "below")
DISK = BudgetKind("disk_size_ratio", "size on disk", "×", "below")
DOWNLOAD = BudgetKind("download_size_ratio", "download size", "×", "below")
MEMORY = BudgetKind("peak_memory_ratio", "peak memory", "×", "below")

SAME = "The model files are the same, byte for byte."


def judge_cost_regression(
    old: Measurements,
    new: Measurements,
    tolerance: float,
    evidence: Evidence,
    *,
    same: bool,
    apart: Sequence[str],
    origins: Sequence[str],
) -> list[Judgement]:
    """Latency, sizes and memory of new over old, from what was measured at two times.

    The latency of each was measured as a ratio to its float32 reference. Where that is one model
    on one machine, the quotient of the two ratios is the ratio of new to old.

    Args:
        tolerance: share by which a cost may grow.
        same: both are one file on one runtime.
        apart: why times and peaks cannot be compared, such as another CPU; empty if they can.
        origins: why the two references are not one model; empty if they are.
    """
    latency, memory = Budget(LATENCY, 1 + tolerance), Budget(MEMORY, 1 + tolerance)
    before, after = old.phases(evidence)[0], new.phases(evidence)[0]
    times = (before.candidate_p50_ms, after.candidate_p50_ms)
    peaks = (_peak(old.candidate_memory), _peak(new.candidate_memory))
    remedy = "measure both here with --measure."
    if same:
        rows = [equal(latency, *times, after.rounds, "ms"), equal(memory, *peaks, 1, "MiB")]
    else:
        against = [*apart, *origins]
        if against:
            timed = not_compared(latency, *times, f"{_listed(against)}: {remedy}", unit="ms")
        else:
            ratio, low, high = quotient(
                (after.ratio, after.ratio_low, after.ratio_high),
                (before.ratio, before.ratio_low, before.ratio_high),
            )
            how = f"each against the same float32 model, {before.rounds} and {after.rounds} rounds"
            timed = _latency(
                latency,
                (ratio, low, high),
                times,
                min(before.rounds, after.rounds),
                evidence,
                how,
                "To decide, time both side by side with --measure.",
            )
        weighed = (
            not_compared(memory, *peaks, f"{_listed(apart)}: {remedy}", unit="MiB")
            if apart
            else _memory(memory, old.candidate_memory, new.candidate_memory)
        )
        rows = [timed, weighed]
    return [rows[0], *_sizes(old, new, tolerance), rows[1]]


def judge_cost_measured(
    both: Measurements, tolerance: float, evidence: Evidence
) -> list[Judgement]:
    """The same rows where old and new were measured side by side, as reference and candidate."""
    answer = both.phases(evidence)[0]
    times = (answer.reference_p50_ms, answer.candidate_p50_ms)
    how = f"{answer.rounds} interleaved rounds on this machine"
    timed = _latency(
        Budget(LATENCY, 1 + tolerance),
        (answer.ratio, answer.ratio_low, answer.ratio_high),
        times,
        answer.rounds,
        evidence,
        how,
        "To decide takes a quieter machine, or more latency_rounds in the profile.",
    )
    sized = replace(both, candidate_size=both.reference_size)
    memory = _memory(Budget(MEMORY, 1 + tolerance), (both.reference_memory,), both.candidate_memory)
    return [timed, *_sizes(sized, both, tolerance), memory]


def quotient(
    upper: tuple[float, float, float], lower: tuple[float, float, float]
) -> tuple[float, float, float]:
    """Ratio of two independent ratios, each given with its one-sided bounds.

    Recovers the variances from the bounds on the log scale, which keeps skewed intervals skewed
    (Zou and Donner, Statistics in Medicine 27, 2008, 1693-1702).

    Returns:
        (ratio, low, high); NaN where an input is no positive number.
    """
    if not all(math.isfinite(x) and x > 0 for x in (*upper, *lower)):
        return math.nan, math.nan, math.nan
    a, a_low, a_high = map(math.log, upper)
    b, b_low, b_high = map(math.log, lower)
    down = math.hypot(a - a_low, b_high - b)
    up = math.hypot(a_high - a, b - b_low)
    return math.exp(a - b), math.exp(a - b - down), math.exp(a - b + up)


def equal(
    budget: Budget, old: float | None, new: float | None, count: int, unit: str | None = None
) -> Judgement:
    """The row of a model compared with itself: nothing can differ, so nothing is estimated."""
    neutral = 1.0 if budget.kind.unit == "×" else 0.0
    return judged(
        budget,
        measured=neutral,
        low=neutral,
        high=neutral,
        reason=SAME,
        reference=old,
        candidate=new,
        value_unit=_unit(budget) if unit is None else unit,
        count=count,
    )


def not_compared(
    budget: Budget,
    old: float | None,
    new: float | None,
    why: str,
    limited: bool = True,
    unit: str | None = None,
) -> Judgement:
    """The row of a metric on which the two cannot be compared.

    Args:
        limited: False where no limit is known.
        why: goes on after "because", and says what would help.
    """
    kind = budget.kind
    return Judgement(
        kind.metric,
        kind.title,
        kind.unit,
        old,
        new,
        None,
        None,
        None,
        budget.limit if limited else math.nan,
        None,
        INCONCLUSIVE,
        f"The {kind.title} was not compared, because {why}",
        _unit(budget) if unit is None else unit,
    )


def _latency(
    budget: Budget,
    ratio: tuple[float, float, float],
    times: tuple[float, float],
    rounds: int,
    evidence: Evidence,
    how: str,
    remedy: str,
) -> Judgement:
    measured, low, high = ratio
    verdict = decide("below", budget.limit, low, high)
    advice = f" {remedy}" if verdict is INCONCLUSIVE else ""
    return judged(
        budget,
        measured=measured,
        low=low,
        high=high,
        reason=f"With {100 * evidence.confidence:g} % confidence "
        f"{claim(budget, verdict, low, high)} ({how}).{advice}",
        reference=times[0],
        candidate=times[1],
        value_unit="ms",
        count=rounds,
    )


def _sizes(old: Measurements, new: Measurements, tolerance: float) -> list[Judgement]:
    rows = []
    for kind, name in ((DISK, "disk_bytes"), (DOWNLOAD, "download_bytes")):
        before, after = (getattr(m.candidate_size, name) / 2**20 for m in (old, new))
        rows.append(
            judged(
                Budget(kind, 1 + tolerance),
                measured=after / before,
                low=after / before,
                high=after / before,
                reason=f"{before:.4g} MiB became {after:.4g} MiB.",
                reference=before,
                candidate=after,
                value_unit="MiB",
                count=1,
            )
        )
    return rows


def _memory(budget: Budget, old: Sequence[Memory], new: Sequence[Memory]) -> Judgement:
    before, after = [m.peak_mib for m in old], [m.peak_mib for m in new]
    return judged(
        budget,
        measured=max(after) / max(before),
        low=min(after) / max(before),
        high=max(after) / min(before),
        reason=f"Peak of a fresh process: {max(before):.0f} MiB became {max(after):.0f} MiB.",
        reference=max(before),
        candidate=max(after),
        value_unit="MiB",
        count=len(after),
    )


def _unit(budget: Budget) -> str:
    return "%" if budget.kind.unit == "points" else ""


def _peak(memories: Sequence[Memory]) -> float:
    return max(memory.peak_mib for memory in memories)


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
