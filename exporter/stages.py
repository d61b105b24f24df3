"""The links of the chain, each one a cached stage: same inputs, same result, paid for once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from exporter.cache import Cache
from exporter.devices.host import host_description
from exporter.graph.model import OnnxModel
from exporter.judge.gate import judge_cost
from exporter.judge.measure import Measurements, measure
from exporter.judge.verdict import INCONCLUSIVE, overall
from exporter.models.columns import SLICES
from exporter.models.examples import (
    Examples,
    Feeds,
    Role,
    Split,
    load_examples,
    stack,
)
from exporter.models.scores import Scores, load_scores
from exporter.models.slices import sliced
from exporter.models.source import Source
from exporter.models.tasks import Task
from exporter.models.text import feeds_id, model_length
from exporter.progress import Prefixed, Progress
from exporter.recipe import Recipe
from exporter.target import Target

R = TypeVar("R", bound=Role)


@dataclass(frozen=True)
class Context:
    """What every stage of one run shares."""

    source: Source
    task: Task
    target: Target
    recipe: Recipe
    cache: Cache
    progress: Progress
    devices: bool = True  # whether the target's devices are asked


# Longest input, in tokens, that data is cut to; a model with a shorter context caps it further.
MAX_LENGTH = 512


@dataclass(frozen=True)
class Prepared:
    """Prepared examples and the key of the stage that made them."""

    examples: Examples[Any]
    key: str


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint directory made by a stage, and facts about how it came to be."""

    directory: Path
    key: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class Built:
    """An ONNX model made by a stage, and facts about how it came to be."""

    model: OnnxModel
    key: str
    facts: dict[str, Any]


def prepare(context: Context, split: Split[R], limit: int | None = None) -> Prepared:
    """Tokenize or load the rows of one split; the first `limit` of them, a random sample."""
    source = context.source

    def make(out: Path, scratch: Path) -> None:
        from exporter.models.load import load_preprocessor

        examples = context.task.prepare(
            split,
            load_preprocessor(source),
            source.config,
            max_length=MAX_LENGTH,
            limit=limit,
        )
        sliced(examples, split).save(out)

    entry = run_stage(
        context,
        f"prepare {split.role.name} data",
        "examples",
        ("models",),
        {
            "model": source.content_hash,
            "task": context.task.name,
            "rows": _hash_of(split),
            "role": split.role.name,
            "length": MAX_LENGTH,
            "limit": limit,
        },
        make,
    )
    return Prepared(load_examples(entry, split.role), entry.name)


def workload_feeds(
    task: Task,
    target: Target,
    config: dict[str, Any],
    preprocessor: Any,
    examples: Examples[Any] | None,
) -> Feeds:
    """One batch of the profile's workload, for timing.

    Texts are as long as the profile says, or as the model's context allows. Where there is no
    preprocessor to tell shapes, real `examples` are taken.
    """
    workload = target.workload
    if preprocessor is None:
        if examples is None:
            raise ValueError("without a preprocessor, examples must tell the shapes")
        return stack(examples.feeds[: workload.batch], examples.pad)
    length = workload.sequence_length
    if task.name == "text-generation":
        length = workload.prompt_length
    if task.name != "image-classification":
        length = model_length(preprocessor, config, length)
    return task.example_feeds(config, preprocessor, batch=workload.batch, length=length)


def judged_scores(
    context: Context, reference: Built, candidate: Built, prepared: Prepared
) -> tuple[Scores, Scores]:
    """Scores of both files on the same examples, the candidate's with how far it diverges."""
    before = scored(about(context, "reference"), reference, prepared)
    against = reference if context.task.joint else None
    return before, context.task.relate(before, scored(context, candidate, prepared, against))


def scored(
    context: Context, built: Built, prepared: Prepared, against: Built | None = None
) -> Scores:
    """Per-example scores of the file that ships, on the runtime that ships."""

    def make(out: Path, scratch: Path) -> None:
        answers(
            context.task,
            built.model,
            prepared.examples,
            against=against.model if against else None,
            progress=context.progress,
        ).save(out)

    entry = run_stage(
        context,
        None,
        "scores",
        ("models", "graph"),
        {
            "model": built.key,
            "against": against.key if against else None,
            "examples": prepared.key,
            "cpu": host_description()["cpu"],
        },
        make,
    )
    return load_scores(entry)


def answers(
    task: Task,
    model: OnnxModel,
    examples: Examples[Any],
    *,
    against: OnnxModel | None = None,
    progress: Progress,
) -> Scores:
    """What a model answers to each example, scored, by every core there is."""
    from exporter.graph.session import open_run

    return task.score(
        open_run(model),
        examples,
        against=open_run(against) if against else None,
        progress=progress,
        workers=os.cpu_count() or 1,  # one example each: the answers do not depend on it
    )


def measured(
    context: Context,
    reference: Built,
    candidate: Built,
    feeds: Feeds,
    rounds: int,
    *,
    decide: bool = False,
) -> Measurements:
    """Latency, interleaved with the reference, size and memory, on this machine.

    Args:
        rounds: of the timing, at least.
        decide: go on until the target's latency budgets are decided or its time is over. What
            an earlier run left undecided is measured anew: the machine may be quieter now.
    """
    target = context.target

    def make(out: Path, scratch: Path) -> None:
        result = measure(
            reference.model,
            candidate.model,
            feeds,
            target.workload,
            threads=target.threads,
            rounds=rounds,
            until=target if decide else None,
            seed=context.recipe.seed,
            progress=context.progress,
        )
        write_facts(out, "measurements.json", result.to_json())

    def undecided(entry: Path) -> bool:
        found = Measurements.from_json(read_facts(entry, "measurements.json"))
        costs = judge_cost(found, target, context.task.name)
        latency = [j for j in costs if j.metric.startswith("latency")]
        return bool(latency) and overall(latency) is INCONCLUSIVE

    entry = run_stage(
        context,
        None,
        "measurements",
        ("graph", "devices", "judge"),
        {
            "reference": reference.key,
            "candidate": candidate.key,
            "workload": target.workload.model_dump(),
            "feeds": feeds_id(feeds),
            "threads": target.threads,
            "rounds": rounds,
            "until": _latency_demands(target) if decide else None,
            "cpu": host_description()["cpu"],
        },
        make,
        redo_if=undecided if decide else None,
    )
    return Measurements.from_json(read_facts(entry, "measurements.json"))


def _latency_demands(target: Target) -> dict[str, Any]:
    """What decides how long the final timing goes on."""
    return {
        "isa": target.isa,
        "features": target.features,
        "latency_ratio": target.budgets.latency_ratio,
        "latency_p95_ms": target.budgets.latency_p95_ms,
        "confidence": target.evidence.confidence,
        "latency_seconds": target.evidence.latency_seconds,
    }


def run_stage(
    context: Context,
    label: str | None,
    name: str,
    rooms: tuple[str, ...],
    inputs: dict[str, Any],
    make: Callable[[Path, Path], None],
    *,
    redo_if: Callable[[Path], bool] | None = None,
) -> Path:
    """Run one stage; with a `label` it gets a bar here, without one it shows its own."""

    def shown(out: Path, scratch: Path) -> None:
        if label is None:
            make(out, scratch)
            return
        with context.progress.stage(label):
            make(out, scratch)

    return context.cache.get_or_make(name, rooms, inputs, shown, redo_if=redo_if)


def _hash_of(split: Split[Any]) -> str:
    """Content of a split, in order: what each row shows the model, its label and its groups."""
    digest = hashlib.sha256()
    for identity, row in zip(split.ids, split.rows, strict=True):
        told = [identity, row.get("label", ""), row.get(SLICES, {})]
        digest.update(json.dumps(told).encode() + b"\n")
    return digest.hexdigest()


def about(context: Context, name: str) -> Context:
    """The context whose progress says what it works on."""
    return replace(context, progress=Prefixed(context.progress, name))


def write_facts(directory: Path, name: str, value: dict[str, Any]) -> None:
    (directory / name).write_text(json.dumps(value, indent=1), encoding="utf-8")


def read_facts(directory: Path, name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((directory / name).read_text(encoding="utf-8"))
    return value
