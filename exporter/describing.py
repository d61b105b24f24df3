"""From an outcome to the report: every figure in it follows from scores, times and the profile."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from exporter.budget import BUDGET_KINDS
from exporter.cache import library_versions
from exporter.judge.conditions import remarks
from exporter.judge.divergence import divergences
from exporter.judge.gate import cautions, not_judged
from exporter.judge.latency import PhaseLatency
from exporter.judge.measure import Measurements
from exporter.judge.reading import readings_to_json
from exporter.judge.slices import slices_of
from exporter.judge.verdict import overall
from exporter.models.scores import Scores
from exporter.report.document import Observation, Phase, Report, SliceRow
from exporter.report.wording import explain
from exporter.stability import Outcome
from exporter.target import Target

# A column with a value of its own in each row would fill the report.
MOST_SLICES = 50


def describe(
    *,
    title: str,
    target: Target,
    outcome: Outcome,
    stability: dict[str, Any] | None,
    notes: tuple[str, ...],
    **facts: Any,
) -> Report:
    """The report of an outcome; `facts` are the report's other fields."""
    measurements = outcome.measurements
    judgements = tuple(j.to_json() for j in outcome.judgements)
    return Report(
        title=title,
        verdict=overall(outcome.judgements).value,
        summary=explain(judgements, stability),
        stability=stability,
        judgements=judgements,
        target={
            **target.model_dump(mode="json", exclude={"recipe", "budgets"}, exclude_none=True),
        },
        phases=phases_of(measurements, target),
        observations=observed(outcome.reference_scores, outcome.candidate_scores, target),
        slices=slice_rows(outcome.reference_scores, outcome.candidate_scores, target),
        devices=tuple(readings_to_json(outcome.devices)),
        environment=measurements.environment,
        times=measurements.answer_times,
        versions=library_versions(),
        notes=(
            *notes,
            *not_judged(measurements, target, outcome.candidate_scores, outcome.devices),
            *remarks(measurements),
            *cautions(outcome.reference_scores, measurements, target.evidence),
        ),
        **facts,
    )


def slice_rows(before: Scores, after: Scores, target: Target) -> tuple[SliceRow, ...]:
    """The worst groups of the examples as the reports show them."""
    found = slices_of(before, after, target.evidence)[:MOST_SLICES]
    return tuple(SliceRow(**asdict(s)) for s in found)


def observed(before: Scores, after: Scores, target: Target) -> tuple[Observation, ...]:
    """What was measured of the answers, for which the profile has no budget."""
    return tuple(
        Observation(
            title=kind.title,
            unit=kind.unit,
            candidate=figure.measured,
            note=f"The profile sets no {figure.metric} ({figure.what}).",
        )
        for figure in divergences(before, after, target.evidence)
        if getattr(target.budgets, figure.metric) is None
        for kind in (BUDGET_KINDS[figure.metric],)
    )


def phases_of(measurements: Measurements, target: Target) -> tuple[Phase, ...]:
    """Latency of the whole workload and of each phase, as the reports show it."""
    return tuple(_phase(p) for p in measurements.phases(target.evidence))


def _phase(phase: PhaseLatency) -> Phase:
    return Phase(
        name=phase.phase,
        reference_p50=phase.reference_p50_ms,
        reference_p95=phase.reference_p95_ms,
        candidate_p50=phase.candidate_p50_ms,
        candidate_p95=phase.candidate_p95_ms,
        ratio=phase.ratio,
        low=phase.ratio_low,
        high=phase.ratio_high,
        unit="ms a token" if phase.phase == "decode" else "ms",
        rounds=phase.rounds,
    )
