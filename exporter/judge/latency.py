"""Latency: paired, interleaved times as ratios with intervals; absolute times where they count."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.budget import Budget
from exporter.devices.host import matches
from exporter.judge.sequential import LOOKS, look_confidence, paired_ratio
from exporter.judge.statistics import quantile_bounds, values_for_quantile
from exporter.judge.verdict import INCONCLUSIVE, Judgement, claim, decide, judged
from exporter.target import Evidence, Target, Workload

Phases = Mapping[str, list[float]]  # phase -> ms, one a round


@dataclass(frozen=True)
class PhaseLatency:
    """One phase of both models; `answer` is the whole workload.

    Attributes:
        phase: "answer", and for language models "prefill" and "decode" (a token).
        ratio: typical paired ratio, candidate over reference, with its bounds.
    """

    phase: str
    reference_p50_ms: float
    reference_p95_ms: float
    candidate_p50_ms: float
    candidate_p95_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    rounds: int


def answer_ms(phases: Phases, workload: Workload) -> NDArray[np.float64]:
    """Time of the whole workload in each round: one run, or a prompt and the tokens after it."""
    if "decode" not in phases:
        return np.asarray(phases["run"], np.float64)
    prefill = np.asarray(phases["prefill"], np.float64)
    return prefill + workload.decode_tokens * np.asarray(phases["decode"], np.float64)


def phase_latencies(
    reference: Phases,
    candidate: Phases,
    workload: Workload,
    confidence: float,
    blocks: Sequence[int] = (),
) -> list[PhaseLatency]:
    """The whole workload and then each phase of a language model, reference against candidate.

    Args:
        confidence: one-sided, of each bound, at this look.
        blocks: rounds of each opening of the models.
    """
    rows = [("answer", answer_ms(reference, workload), answer_ms(candidate, workload))]
    if "decode" in reference:
        rows += [
            (phase, np.asarray(reference[phase]), np.asarray(candidate[phase]))
            for phase in ("prefill", "decode")
        ]
    out = []
    for phase, before, after in rows:
        ratio, low, high = paired_ratio(after, before, confidence=confidence, blocks=blocks)
        out.append(
            PhaseLatency(
                phase,
                reference_p50_ms=float(np.quantile(before, 0.5)),
                reference_p95_ms=float(np.quantile(before, 0.95)),
                candidate_p50_ms=float(np.quantile(after, 0.5)),
                candidate_p95_ms=float(np.quantile(after, 0.95)),
                ratio=ratio,
                ratio_low=low,
                ratio_high=high,
                rounds=len(before),
            )
        )
    return out


def judge_latency(
    budget: Budget,
    target: Target,
    host: Mapping[str, Any],
    times_ms: Mapping[str, Phases],
    workload: Workload,
    *,
    blocks: Sequence[int] = (),
    looks: int = 0,
) -> Judgement | None:
    """Judge a latency budget at a look; None when it is none, or `host` cannot judge it.

    Args:
        host: the machine that measured.
        times_ms: "reference" and "candidate" -> phase -> ms.
        blocks: rounds of each opening of the models.
        looks: taken; 0 when the number of rounds was fixed beforehand.
    """
    reference, candidate, evidence = times_ms["reference"], times_ms["candidate"], target.evidence
    if budget.kind.metric == "latency_ratio":
        confidence = look_confidence(evidence.confidence, looks)
        answer = phase_latencies(reference, candidate, workload, confidence, blocks)[0]
        return judge_latency_ratio(answer, budget, evidence, looks)
    if budget.kind.metric == "latency_p95_ms" and matches(host, target):
        return judge_p95(reference, candidate, workload, budget, evidence, looks)
    return None


def judge_latency_ratio(
    answer: PhaseLatency, budget: Budget, evidence: Evidence, looks: int = 0
) -> Judgement:
    """Judge the ratio of the whole workload's latency, measured here, side by side.

    Args:
        answer: with the bounds of the last look.
        looks: taken; 0 when the number of rounds was fixed beforehand.
    """
    verdict = decide(budget.kind.good, budget.limit, answer.ratio_low, answer.ratio_high)
    shown = claim(budget, verdict, answer.ratio_low, answer.ratio_high)
    seen = f", look {looks} of at most {LOOKS}" if looks > 1 else ""
    reason = (
        f"With {100 * evidence.confidence:g} % confidence {shown} "
        f"({answer.rounds} interleaved rounds on this machine{seen})."
    )
    needed = None
    if verdict is INCONCLUSIVE and answer.ratio < budget.limit:
        # the interval narrows with the root of the rounds
        room = math.log(budget.limit / answer.ratio)
        factor = (math.log(answer.ratio_high / answer.ratio) / room) ** 2
        needed = math.ceil(answer.rounds * factor) if math.isfinite(factor) else None
        about = f"about {needed:,}" if needed is not None else "many more"
        reason += f" To decide takes {about} rounds, or a quieter machine."
    if verdict is INCONCLUSIVE and looks:
        reason += (
            f" Timing ended with the last look, at {answer.rounds:,} rounds."
            if looks >= LOOKS
            else f" Timing ended at latency_seconds = {evidence.latency_seconds:g}."
        )
    return judged(
        budget,
        measured=answer.ratio,
        low=answer.ratio_low,
        high=answer.ratio_high,
        reason=reason,
        reference=answer.reference_p50_ms,
        candidate=answer.candidate_p50_ms,
        value_unit="ms",
        count=answer.rounds,
        needed=needed,
    )


def judge_p95(
    reference: Phases,
    candidate: Phases,
    workload: Workload,
    budget: Budget,
    evidence: Evidence,
    looks: int = 0,
) -> Judgement:
    """Judge the whole workload's 95th percentile, on a machine of the target's class.

    It shares the looks of the ratio, at which timing stops for either, and so it takes the same
    share of the error at each. The bound is exact for rounds that are independent.
    """
    confidence = look_confidence(evidence.confidence, looks)
    times = answer_ms(candidate, workload)
    p95, low, high = quantile_bounds(times, 0.95, confidence)
    verdict = decide(budget.kind.good, budget.limit, low, high)
    reason = (
        f"With {100 * evidence.confidence:g} % confidence {claim(budget, verdict, low, high)} "
        f"({len(times)} rounds of the whole workload)."
    )
    needed = values_for_quantile(0.95, confidence)
    few = verdict is INCONCLUSIVE and len(times) < needed
    if few:
        reason += f" Fewer than {needed} rounds cannot bound a 95th percentile."
    return judged(
        budget,
        measured=p95,
        low=low,
        high=high,
        reason=reason,
        reference=float(np.quantile(answer_ms(reference, workload), 0.95)),
        candidate=p95,
        value_unit="ms",
        count=len(times),
        needed=needed if few else None,
    )


def rounds_for(target: Target, host: Mapping[str, Any]) -> int:
    """Rounds before the first look on `host`, so that every budget can be decided there."""
    rounds = target.evidence.latency_rounds
    if target.budgets.latency_p95_ms is None or not matches(host, target):
        return rounds
    return max(rounds, values_for_quantile(0.95, look_confidence(target.evidence.confidence, 1)))


def reference_drift(reference: Phases, workload: Workload) -> float | None:
    """How much slower the reference was in the last third of the rounds than in the first.

    The ratio of the medians minus 1: 0.1 is 10 % slower, a negative number faster; None for fewer
    than 6 rounds.
    """
    times = answer_ms(reference, workload)
    third = len(times) // 3
    if third < 2 or not np.isfinite(times).all():
        return None
    return float(np.median(times[-third:]) / np.median(times[:third]) - 1)
