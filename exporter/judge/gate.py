"""The gate: every budget of a target against everything that was measured."""

from __future__ import annotations

from exporter.devices.local import matches
from exporter.judge.divergence import judge_divergence
from exporter.judge.latency import judge_latency
from exporter.judge.measure import Measurements
from exporter.judge.memory import judge_memory
from exporter.judge.quality import judge_quality
from exporter.judge.size import judge_size
from exporter.judge.slices import METRICS as SLICE_METRICS
from exporter.judge.slices import judge_slices
from exporter.judge.verdict import Judgement
from exporter.models.scores import Scores
from exporter.target import Budget, Target


def judge(
    reference: Scores, candidate: Scores, measurements: Measurements, target: Target
) -> tuple[Judgement, ...]:
    """One judgement a budget of the scores' task, in the order that reports show them.

    Raises:
        DataError: the scores are not of the same examples, or lack a column.
    """
    by_metric = {
        judgement.metric: judgement
        for judgement in (
            *judge_answers(reference, candidate, target),
            *judge_cost(measurements, target, reference.task),
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


def not_judged(measurements: Measurements, target: Target, scores: Scores) -> list[str]:
    """A sentence for each budget of the task that could not be judged here, and why."""
    told = []
    for budget in target.budgets.for_task(scores.task):
        metric = budget.kind.metric
        if metric in SLICE_METRICS and not scores.slices:
            told.append(
                f"{metric} was not judged: the examples have no groups. Name a column of the "
                "data with --slice."
            )
        if metric == "latency_p95_ms" and not matches(measurements.host, target):
            wanted = ", ".join([target.isa, *target.features, f"{target.threads} threads"])
            told.append(
                f"latency_p95_ms was not judged: {measurements.host.get('cpu', 'this machine')} "
                f"is not a {target.name} device ({wanted}). Run `exporter check` on one."
            )
    return told


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
