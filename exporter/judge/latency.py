"""Latency: paired, interleaved times as ratios with intervals; absolute times where they count."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.judge.statistics import paired_ratio, quantile_bounds, values_for_quantile
from exporter.judge.verdict import INCONCLUSIVE, Judgement, claim, decide, judged
from exporter.target import Budget, Evidence, Target, Workload

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
    reference: Phases, candidate: Phases, workload: Workload, evidence: Evidence
) -> list[PhaseLatency]:
    """The whole workload and then each phase of a language model, reference against candidate."""
    rows = [("answer", answer_ms(reference, workload), answer_ms(candidate, workload))]
    if "decode" in reference:
        rows += [
            (phase, np.asarray(reference[phase]), np.asarray(candidate[phase]))
            for phase in ("prefill", "decode")
        ]
    out = []
    for phase, before, after in rows:
        ratio, low, high = paired_ratio(
            after, before, confidence=evidence.confidence, resamples=evidence.resamples, seed=0
        )
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


def judge_latency_ratio(answer: PhaseLatency, budget: Budget, evidence: Evidence) -> Judgement:
    """Judge the ratio of the whole workload's latency, measured here, side by side."""
    verdict = decide(budget.kind.good, budget.limit, answer.ratio_low, answer.ratio_high)
    shown = claim(budget, verdict, answer.ratio_low, answer.ratio_high)
    reason = (
        f"With {100 * evidence.confidence:g} % confidence {shown} "
        f"({answer.rounds} interleaved rounds on this machine)."
    )
    needed = None
    if verdict is INCONCLUSIVE and answer.ratio < budget.limit:
        # the interval narrows with the root of the rounds
        room = math.log(budget.limit / answer.ratio)
        needed = math.ceil(answer.rounds * (math.log(answer.ratio_high / answer.ratio) / room) ** 2)
        reason += f" To decide takes about {needed:,} rounds, or a quieter machine."
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
    reference: Phases, candidate: Phases, workload: Workload, budget: Budget, evidence: Evidence
) -> Judgement:
    """Judge the whole workload's 95th percentile, on a machine of the target's class."""
    times = answer_ms(candidate, workload)
    p95, low, high = quantile_bounds(times, 0.95, evidence.confidence)
    verdict = decide(budget.kind.good, budget.limit, low, high)
    reason = (
        f"With {100 * evidence.confidence:g} % confidence {claim(budget, verdict, low, high)} "
        f"({len(times)} rounds of the whole workload)."
    )
    needed = values_for_quantile(0.95, evidence.confidence)
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
    """Rounds that the final timing of `target` takes on `host`, so that every budget is decided."""
    from exporter.devices.local import matches

    rounds = target.evidence.latency_rounds
    if target.budgets.latency_p95_ms is None or not matches(host, target):
        return rounds
    return max(rounds, values_for_quantile(0.95, target.evidence.confidence))
