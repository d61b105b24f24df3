"""From the chosen candidate to the artifact: what ships, what it claims, and how to repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from exporter import __version__
from exporter.attempts import Attempt, Construction
from exporter.cache import code_hash, library_versions
from exporter.describing import describe
from exporter.flips import worth_reading
from exporter.judge.reading import readings_to_json
from exporter.judge.verdict import FAIL, INCONCLUSIVE, Verdict, overall
from exporter.models.source import read_config
from exporter.models.splits import Splits
from exporter.readings import readings_note
from exporter.report.document import (
    CandidateRow,
    Flip,
    Report,
    Status,
    json_ready,
)
from exporter.report.render import render
from exporter.report.wording import article, repeated
from exporter.ship.bundle import assemble, assemble_model
from exporter.ship.sbom import SBOM, make_sbom
from exporter.stability import Outcome, Stability
from exporter.stages import MAX_LENGTH, Built, Context, Prepared
from exporter.supporting import support_notes, supported


def ship(
    directory: Path,
    context: Context,
    *,
    splits: Splits,
    data: str,
    columns: Mapping[str, str],
    slices: Sequence[str],
    seeds: int,
    show_examples: bool,
    attempts: Sequence[Attempt],
    chosen: Attempt,
    stability: Stability | None,
    reference: Built,
    test: Prepared,
    development: Prepared,
    outcome: Outcome,
    out: Path,
) -> Report:
    """Write the whole artifact into `directory`, which will appear as `out`."""
    made = chosen.made
    if made is None:
        raise ValueError("only an attempt that was built can ship")
    source = context.source
    config = None if made.checkpoint is None else read_config(made.checkpoint.directory)
    notes = assemble_model(
        directory,
        model=made.built.model,
        task=context.task.name,
        preprocessor_files=source.preprocessor_directory,
        config=config,
        max_length=MAX_LENGTH,
        paired="text_pair" in splits.test.rows[0],
    )
    support = supported(context, made.built)
    repeats = None if stability is None else json_ready(asdict(stability))
    command = _command(
        context, data, columns, slices, out, seeds=seeds, show_examples=show_examples
    )
    report = describe(
        title=f"{out.name}",
        target=context.target,
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
        flips=_flips(context, outcome, splits, test) if show_examples else (),
        stability=repeats,
        pruning=made.removed,
        recovery=made.recovery,
        parity=made.float_built.facts.get("parity"),
        audit={k: v for k, v in made.built.facts.items() if k != "ort"},
        support=support,
        seed=context.recipe.seed,
        command=command,
        runtime="onnxruntime-genai" if made.built.model.genai else "onnxruntime",
        notes=(
            *notes,
            *_notes(context, made, reference, chosen, splits),
            *support_notes(support, made.built.model),
            *([repeated(repeats)] if repeats else []),
            *_readings(outcome),
        ),
    )
    bill = make_sbom(
        directory, title=out.name, version=__version__, model=report.model, data=report.data
    )
    assemble(
        directory,
        documents={**render(report), SBOM: bill},
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
                "quality_reference": made.reference.key,
                "candidate": made.built.key,
                "test": test.key,
                "development": development.key,
            },
            "reference": {"sha256": reference.model.weights_sha256()},
            "test_readings": {
                "earlier": len(outcome.earlier_readings),
                "candidates": list(outcome.earlier_readings),
            },
            "versions": library_versions(),
            "seed": context.recipe.seed,
            "command": command,
        },
        reference_scores=outcome.reference_scores,
        candidate_scores=outcome.candidate_scores,
        measurements=outcome.measurements.to_json(),
        devices=readings_to_json(outcome.devices),
    )
    return report


def _flips(context: Context, outcome: Outcome, splits: Splits, test: Prepared) -> tuple[Flip, ...]:
    from exporter.models.load import load_preprocessor

    tokens = context.task.name == "text-generation"
    return worth_reading(
        outcome.reference_scores,
        outcome.candidate_scores,
        splits.test,
        test.examples,
        load_preprocessor(context.source) if tokens else None,
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
        instruction_ratio=attempt.instruction_ratio,
        size_ratio=disk / sizes.reference_size.disk_bytes,
        size_mib=disk / 2**20,
    )


QUALITY = ("accuracy_drop_points", "perplexity_ratio", "embedding_cosine")
_STATUS: dict[Verdict, Status] = {
    Verdict.PASS: "passed",
    Verdict.FAIL: "failed",
    Verdict.INCONCLUSIVE: "inconclusive",
}


def _notes(
    context: Context, made: Construction, reference: Built, chosen: Attempt, splits: Splits
) -> list[str]:
    notes = []
    if overall(chosen.judgements) != Verdict.PASS:
        notes.append(
            "No candidate passed every budget on development data; the least far from it was "
            "judged on test data."
        )
    if left_out := splits.left_out_text():
        notes.append(f"{left_out}.")
    if context.target.isa != "x86-64":
        notes.append(
            f"Latency and memory were measured on the machine that ran the export, not on "
            f"{article(context.target.name)} {context.target.name} device: ratios carry over in "
            "kind, not in size."
        )
    if made.reference.key != reference.key:
        notes.append(
            "The reference was trained on for as many steps as the candidate's recovery took, and "
            "quality is judged against that better reference."
        )
    if context.source.allow_pickle:
        notes.append("Weights were allowed to be pickles.")
    if context.source.trust_remote_code:
        notes.append("Code that came with the model was trusted and run.")
    return notes


def _readings(outcome: Outcome) -> list[str]:
    note = readings_note(outcome.earlier_readings)
    return [note] if note else []


def _command(
    context: Context,
    data: str,
    columns: Mapping[str, str],
    slices: Sequence[str],
    out: Path,
    *,
    seeds: int,
    show_examples: bool,
) -> str:
    words = ["exporter", "export", context.source.location]
    words += ["--target", context.target.name, "--data", data, "--task", context.task.name]
    for canonical, own in columns.items():
        words += ["--column", f"{canonical}={own}"]
    for name in slices:
        words += ["--slice", name]
    words += [] if show_examples else ["--no-examples"]
    words += ["--seed", str(context.recipe.seed)]
    words += ["--seeds", str(seeds)] if seeds > 1 else []
    words += ["--out", str(out)]
    words += ["--allow-pickle"] if context.source.allow_pickle else []
    words += ["--trust-remote-code"] if context.source.trust_remote_code else []
    return shlex.join(words)
