"""The gate: every budget of a target against everything that was measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from exporter.budget import Budget
from exporter.devices.host import matches
from exporter.judge.devices import devices_not_judged, judge_devices
from exporter.judge.divergence import judge_divergence
from exporter.judge.latency import judge_latency
from exporter.judge.measure import Measurements
from exporter.judge.memory import judge_memory
from exporter.judge.quality import judge_quality
from exporter.judge.reading import Reading, host_of
from exporter.judge.size import judge_size
from exporter.judge.slices import METRICS as SLICE_METRICS
from exporter.judge.slices import judge_slices
from exporter.judge.statistics import proportion_bounds
from exporter.judge.verdict import Judgement
from exporter.models.scores import Scores
from exporter.target import Evidence, Target


def judge(
    reference: Scores,
    candidate: Scores,
    measurements: Measurements,
    target: Target,
    readings: Sequence[Reading] = (),
) -> tuple[Judgement, ...]:
    """One judgement a budget of the scores' task, in the order that reports show them.

    Args:
        readings: of the target's devices.

    Raises:
        DataError: the scores are not of the same examples, or lack a column.
    """
    by_metric = {
        judgement.metric: judgement
        for judgement in (
            *judge_answers(reference, candidate, target),
            *judge_cost(measurements, target, reference.task),
            *judge_devices(readings, target, reference.task),
        )
    }
    budgets = target.budgets.for_task(reference.task)
    return tuple(by_metric[b.kind.metric] for b in budgets if b.kind.metric in by_metric)


def judge_answers(reference: Scores, candidate: Scores, target: Target) -> list[Judgement]:
    """One judgement for each budget on what the model answers: quality, divergence, slices."""
    return [
        judgement
        for judges in (judge_quality, judge_divergence, judge_slices)
        for judgement in judges(reference, candidate, target.budgets, target.evidence)
    ]


def judge_cost(measurements: Measurements, target: Target, task: str) -> list[Judgement]:
    """One judgement for each latency, size and memory budget that can be judged on that machine."""
    return [
        judgement
        for budget in target.budgets.for_task(task)
        if (judgement := _judge_one(measurements, target, budget)) is not None
    ]


def cautions(reference: Scores, measurements: Measurements, evidence: Evidence) -> list[str]:
    """Sentences on what a pass does not mean here: a weak reference, a longer tail of times."""
    told = []
    if "label" in reference.values:
        labels, correct = reference.values["label"], reference.values["correct"]
        common = int(np.unique(labels, return_counts=True)[1].max())
        count = len(labels)
        low, _ = proportion_bounds(int(correct.sum()), count, evidence.confidence)
        if low <= common / count:
            told.append(
                f"The reference is right in {correct.mean():.1%} of {count:,} answers and is not "
                f"shown to beat the most frequent class ({common / count:.1%}): that a candidate "
                "is no worse says little."
            )
    answer = measurements.phases(evidence)[0]
    if answer.ratio_high < 1 < answer.candidate_p95_ms / answer.reference_p95_ms:
        told.append(
            f"Typical runs became faster, the slowest did not: the 95th percentile is "
            f"{answer.candidate_p95_ms:.3g} ms, the reference's {answer.reference_p95_ms:.3g} ms."
        )
    return told


def not_judged(
    measurements: Measurements, target: Target, scores: Scores, readings: Sequence[Reading] = ()
) -> list[str]:
    """A sentence for each budget of the task that could not be judged here, and why."""
    told = []
    for budget in target.budgets.for_task(scores.task):
        metric = budget.kind.metric
        if metric in SLICE_METRICS and not scores.slices:
            told.append(
                f"{metric} was not judged: the examples have no groups. Name a column of the "
                "data with --slice."
            )
        if (
            metric == "latency_p95_ms"
            and not matches(measurements.host, target)
            and not any(matches(host_of(r, target), target) for r in readings if r.times_ms)
        ):
            wanted = ", ".join([target.isa, *target.features, f"{target.threads} threads"])
            told.append(
                f"latency_p95_ms was not judged: {measurements.host.get('cpu', 'this machine')} "
                f"is not a {target.name} device ({wanted}). Run `exporter check` on one."
            )
    return told + devices_not_judged(readings, target, scores.task)


def _judge_one(measurements: Measurements, target: Target, budget: Budget) -> Judgement | None:
    metric = budget.kind.metric
    if metric.startswith("latency"):
        return judge_latency(
            budget,
            target,
            measurements.host,
            measurements.times_ms,
            measurements.workload,
            blocks=measurements.blocks,
            looks=len(measurements.looks),
        )
    if metric == "peak_memory_mib":
        return judge_memory(measurements.reference_memory, measurements.candidate_memory, budget)
    if metric.endswith(("size_ratio", "size_mib")):
        return judge_size(measurements.reference_size, measurements.candidate_size, budget)
    return None
