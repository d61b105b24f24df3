"""From the chosen candidate to the artifact: what ships, what it claims, and how to repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter import __version__
from exporter.attempts import Attempt
from exporter.cache import code_hash, library_versions
from exporter.judge.gate import not_judged
from exporter.judge.latency import PhaseLatency
from exporter.judge.measure import Measurements
from exporter.judge.verdict import FAIL, INCONCLUSIVE, Judgement, Verdict, overall
from exporter.models.scores import Scores
from exporter.models.source import read_config
from exporter.models.splits import Splits
from exporter.report.document import CandidateRow, Phase, Report, Status
from exporter.report.render import render
from exporter.report.wording import explain
from exporter.ship.bundle import assemble, assemble_model
from exporter.stages import MAX_LENGTH, Built, Context, Prepared
from exporter.target import Target


@dataclass(frozen=True)
class Outcome:
    """The final judgement and what it rests on."""

    reference_scores: Scores
    candidate_scores: Scores
    measurements: Measurements
    judgements: tuple[Judgement, ...]


def ship(
    directory: Path,
    context: Context,
    *,
    splits: Splits,
    data: str,
    columns: Mapping[str, str],
    attempts: Sequence[Attempt],
    chosen: Attempt,
    reference: Built,
    test: Prepared,
    outcome: Outcome,
    out: Path,
) -> Report:
    """Write the whole artifact into `directory`, which will appear as `out`."""
    if chosen.built is None or chosen.reference is None or chosen.float_built is None:
        raise ValueError("only an attempt that was built can ship")
    source = context.source
    config = None if chosen.checkpoint is None else read_config(chosen.checkpoint.directory)
    notes = assemble_model(
        directory,
        model=chosen.built.model,
        task=context.task.name,
        preprocessor_files=source.preprocessor_directory,
        config=config,
        max_length=MAX_LENGTH,
        paired="text_pair" in splits.test.rows[0],
    )
    command = _command(context, data, columns, out)
    report = describe(
        title=f"{out.name}",
        target=context.target,
        task=context.task.name,
        outcome=outcome,
        model={
            "name": source.name,
            "location": source.location,
            "kind": source.kind,
            "family": source.config.get("model_type", ""),
            "task": context.task.name,
            "sha256": source.content_hash,
            **({"hub_id": source.location} if source.from_hub else {}),
        },
        data={
            "location": data,
            "sha256": splits.data_hash,
            **{
                name: len(getattr(splits, name))
                for name in ("train", "calibration", "development", "test")
            },
        },
        recipe=chosen.candidate.model_dump(mode="json", exclude_none=True),
        candidates=tuple(_row(a, chosen) for a in attempts),
        pruning=chosen.removed,
        recovery=chosen.recovery,
        parity=chosen.float_built.facts.get("parity"),
        audit=chosen.built.facts,
        seed=context.recipe.seed,
        command=command,
        runtime="onnxruntime-genai" if chosen.built.model.genai else "onnxruntime",
        notes=(*notes, *_notes(context, chosen, reference)),
    )
    assemble(
        directory,
        documents=render(report),
        manifest={
            "tool": {"name": "exporter", "version": __version__, "code": code_hash(".")},
            "verdict": report.verdict,
            "source": {
                **report.model,
                "allow_pickle": source.allow_pickle,
                "trust_remote_code": source.trust_remote_code,
            },
            "data": report.data,
            "target": context.target.model_dump(mode="json"),
            "candidate": report.recipe,
            "stages": {
                "reference": reference.key,
                "quality_reference": chosen.reference.key,
                "candidate": chosen.built.key,
                "test": test.key,
            },
            "versions": library_versions(),
            "seed": context.recipe.seed,
            "command": command,
        },
        reference_scores=outcome.reference_scores,
        candidate_scores=outcome.candidate_scores,
        measurements=outcome.measurements.to_json(),
    )
    return report


def describe(
    *, title: str, target: Target, task: str, outcome: Outcome, notes: tuple[str, ...], **facts: Any
) -> Report:
    """The report of an outcome; `facts` are the report's other fields."""
    measurements = outcome.measurements
    judgements = tuple(j.to_json() for j in outcome.judgements)
    return Report(
        title=title,
        verdict=overall(outcome.judgements).value,
        summary=explain(judgements),
        judgements=judgements,
        target={
            **target.model_dump(mode="json", exclude={"recipe", "budgets"}, exclude_none=True),
        },
        phases=phases_of(measurements, target),
        environment=measurements.host,
        versions=library_versions(),
        notes=(*notes, *not_judged(measurements, target, task)),
        **facts,
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


def _row(attempt: Attempt, chosen: Attempt) -> CandidateRow:
    name = attempt.candidate.name
    if attempt.status != "judged" or attempt.measurements is None:
        return CandidateRow(
            name, "skipped" if attempt.status == "skipped" else "error", attempt.reason
        )
    lost = [j for j in attempt.judgements if j.verdict in (FAIL, INCONCLUSIVE)]
    verdict = overall(attempt.judgements)
    quality = next((j for j in attempt.judgements if j.count and j.metric in QUALITY), None)
    sizes = attempt.measurements
    disk = sizes.candidate_size.disk_bytes
    return CandidateRow(
        name,
        "chosen" if attempt is chosen else _STATUS[verdict],
        "; ".join(j.reason for j in lost),
        quality=None if quality is None else quality.measured,
        quality_metric=None if quality is None else quality.metric,
        latency_ratio=attempt.latency_ratio,
        size_ratio=disk / sizes.reference_size.disk_bytes,
        size_mib=disk / 2**20,
    )


QUALITY = ("accuracy_drop_points", "perplexity_ratio", "embedding_cosine")
_STATUS: dict[Verdict, Status] = {
    Verdict.PASS: "passed",
    Verdict.FAIL: "failed",
    Verdict.INCONCLUSIVE: "inconclusive",
}


def _notes(context: Context, chosen: Attempt, reference: Built) -> list[str]:
    notes = []
    if context.target.isa != "x86-64" or chosen.measurements is None:
        notes.append(
            f"Latency and memory were measured on the machine that ran the export, not on a "
            f"{context.target.name} device: ratios carry over in kind, not in size."
        )
    if chosen.reference is not None and chosen.reference.key != reference.key:
        notes.append(
            "The reference was trained on for as many steps as the candidate's recovery took, and "
            "quality is judged against that better reference."
        )
    if context.source.allow_pickle:
        notes.append("Weights were allowed to be pickles.")
    if context.source.trust_remote_code:
        notes.append("Code that came with the model was trusted and run.")
    return notes


def _command(context: Context, data: str, columns: Mapping[str, str], out: Path) -> str:
    words = ["exporter", "export", context.source.location]
    words += ["--target", context.target.name, "--data", data, "--task", context.task.name]
    for canonical, own in columns.items():
        words += ["--column", f"{canonical}={own}"]
    words += ["--seed", str(context.recipe.seed), "--out", str(out)]
    words += ["--allow-pickle"] if context.source.allow_pickle else []
    words += ["--trust-remote-code"] if context.source.trust_remote_code else []
    return shlex.join(words)
