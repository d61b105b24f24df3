"""The links of the chain, each one a cached stage: same inputs, same result, paid for once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from exporter.cache import Cache
from exporter.devices.local import host_description
from exporter.graph.model import OnnxModel
from exporter.judge.measure import Measurements, measure
from exporter.models.examples import (
    Calibration,
    Development,
    Examples,
    Feeds,
    Role,
    Split,
    Train,
    load_examples,
    stack,
)
from exporter.models.scores import Scores, load_scores
from exporter.models.source import Source, read_config
from exporter.models.tasks import Task
from exporter.models.text import model_length
from exporter.progress import Progress
from exporter.recipe import Candidate, FineTune, Pruning, Recipe
from exporter.target import Target

if TYPE_CHECKING:
    from exporter.models.load import LoadedModule

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
        examples.save(out)

    entry = _stage(
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


def reference_graph(context: Context) -> Built:
    """The original model as float32 ONNX, behind the parity gate."""
    return _export(context, None)


def pruned(context: Context, pruning: Pruning, train: Prepared) -> Checkpoint:
    """The original with units removed, as an ordinary checkpoint."""
    examples: Examples[Train] = train.examples

    def make(out: Path, scratch: Path) -> None:
        from exporter.compress.prune import prune

        result = prune(
            _load(context, None).module,
            context.task,
            examples.head(pruning.examples),
            pruning,
            progress=context.progress,
        )
        _save_checkpoint(context, result.module, out)
        _write(out, "facts.json", {"removed": result.removed, "skipped": list(result.skipped)})

    entry = _stage(
        context,
        None,
        "pruned",
        ("models", "compress"),
        {
            "model": context.source.content_hash,
            "task": context.task.name,
            "train": train.key,
            "pruning": pruning.model_dump(),
        },
        make,
    )
    return Checkpoint(entry / "checkpoint", entry.name, _read(entry, "facts.json"))


def fine_tuned(
    context: Context,
    student: Checkpoint | None,
    teacher: Checkpoint | None,
    options: FineTune,
    train: Prepared,
    development: Prepared,
    *,
    distil: bool,
) -> Checkpoint:
    """A checkpoint after recovery; `student` or `teacher` None stands for the original.

    Without `distil` the task's own loss alone is used: the equal training of the reference.
    """
    train_examples: Examples[Train] = train.examples
    development_examples: Examples[Development] = development.examples

    def make(out: Path, scratch: Path) -> None:
        from exporter.compress.finetune import fine_tune

        result = fine_tune(
            _load(context, student).module,
            _load(context, teacher).module if distil else None,
            context.task,
            train_examples,
            development_examples,
            options,
            seed=context.recipe.seed,
            scratch=scratch,
            progress=context.progress,
        )
        _save_checkpoint(context, result.module, out)
        _write(
            out,
            "facts.json",
            {
                "history": result.history,
                "best_step": result.best_step,
                "development_loss": result.development_loss,
            },
        )

    entry = _stage(
        context,
        None,
        "fine-tuned",
        ("models", "compress"),
        {
            "model": context.source.content_hash,
            "task": context.task.name,
            "student": student.key if student else None,
            "teacher": teacher.key if teacher else None,
            "distil": distil,
            "options": options.model_dump(),
            "train": train.key,
            "development": development.key,
            "seed": context.recipe.seed,
        },
        make,
    )
    return Checkpoint(entry / "checkpoint", entry.name, _read(entry, "facts.json"))


def exported(context: Context, checkpoint: Checkpoint) -> Built:
    """A pruned or fine-tuned checkpoint as float32 ONNX, behind the parity gate."""
    return _export(context, checkpoint)


def quantized(
    context: Context, built: Built, candidate: Candidate, calibration: Prepared, feeds: Feeds
) -> Built:
    """`built` in the candidate's format, audited, with its fusions chosen by measurement."""
    examples: Examples[Calibration] = calibration.examples
    target = context.target

    def make(out: Path, scratch: Path) -> None:
        from exporter.graph.audit import audit
        from exporter.graph.fuse import choose_fusions
        from exporter.quantize import QuantizeOptions, get_scheme

        result = get_scheme(candidate.quantization).quantize(
            built.model,
            out / "model",
            QuantizeOptions(
                calibration=examples,
                reduce_range=target.int8_may_saturate,
                per_channel=candidate.per_channel,
                block_size=candidate.block_size,
                threads=target.threads,
            ),
        )
        choose_fusions(result.model, feeds, threads=target.threads)
        runs = audit(result.model, result.planned)
        _write(
            out,
            "facts.json",
            {
                "planned": result.planned,
                "integer": result.integer,
                "kept_float": list(result.kept_float),
                "op_counts": runs.op_counts,
                "notes": list(result.notes),
            },
        )

    entry = _stage(
        context,
        f"quantize to {candidate.quantization}",
        "quantized",
        ("models", "graph", "quantize"),
        {
            "model": built.key,
            "scheme": candidate.quantization,
            "block_size": candidate.block_size,
            "per_channel": candidate.per_channel,
            "reduce_range": target.int8_may_saturate,
            "threads": target.threads,
            "calibration": calibration.key,
            "cpu": host_description()["cpu"],
        },
        make,
    )
    return Built(OnnxModel(entry / "model"), entry.name, _read(entry, "facts.json"))


def scored(context: Context, built: Built, prepared: Prepared) -> Scores:
    """Per-example scores of the file that ships, on the runtime that ships."""

    def make(out: Path, scratch: Path) -> None:
        from exporter.graph.session import open_run

        run = open_run(built.model)
        workers = os.cpu_count() or 1  # one example each: the answers do not depend on it
        scores = context.task.score(
            run, prepared.examples, progress=context.progress, workers=workers
        )
        scores.save(out)

    entry = _stage(
        context,
        None,
        "scores",
        ("models", "graph"),
        {"model": built.key, "examples": prepared.key, "cpu": host_description()["cpu"]},
        make,
    )
    return load_scores(entry)


def measured(
    context: Context, reference: Built, candidate: Built, feeds: Feeds, rounds: int
) -> Measurements:
    """Latency, interleaved with the reference, size and memory, on this machine."""
    target = context.target

    def make(out: Path, scratch: Path) -> None:
        result = measure(
            reference.model,
            candidate.model,
            feeds,
            target.workload,
            threads=target.threads,
            rounds=rounds,
            seed=context.recipe.seed,
            progress=context.progress,
        )
        _write(out, "measurements.json", result.to_json())

    entry = _stage(
        context,
        None,
        "measurements",
        ("graph", "devices", "judge"),
        {
            "reference": reference.key,
            "candidate": candidate.key,
            "workload": target.workload.model_dump(),
            "threads": target.threads,
            "rounds": rounds,
            "cpu": host_description()["cpu"],
        },
        make,
    )
    return Measurements.from_json(_read(entry, "measurements.json"))


def _export(context: Context, checkpoint: Checkpoint | None) -> Built:
    source = context.source

    def make(out: Path, scratch: Path) -> None:
        from exporter.graph.export import export_model
        from exporter.graph.parity import check_parity
        from exporter.graph.source_onnx import adopt_onnx
        from exporter.models.runner import torch_run

        if source.kind == "onnx" and source.path is not None:
            adopt_onnx(source.path, out / "model")
            _write(out, "facts.json", {"parity": None})
            return
        loaded = _load(context, checkpoint)
        directory = source.path if checkpoint is None else checkpoint.directory
        config = source.config if checkpoint is None else read_config(checkpoint.directory)
        model = export_model(
            loaded,
            task=context.task,
            config=config,
            checkpoint=directory,
            out=out / "model",
            progress=context.progress,
        )
        report = check_parity(
            torch_run(loaded.module),
            model,
            context.task,
            config,
            loaded.preprocessor,
            example_inputs=loaded.example_inputs,
            progress=context.progress,
        )
        _write(out, "facts.json", {"parity": report.to_json()})

    entry = _stage(
        context,
        None,
        "exported",
        ("models", "graph"),
        {
            "model": context.source.content_hash,
            "task": context.task.name,
            "checkpoint": checkpoint.key if checkpoint else None,
        },
        make,
    )
    return Built(OnnxModel(entry / "model"), entry.name, _read(entry, "facts.json"))


def _stage(
    context: Context,
    label: str | None,
    name: str,
    rooms: tuple[str, ...],
    inputs: dict[str, Any],
    make: Callable[[Path, Path], None],
) -> Path:
    """Run one stage; with a `label` it gets a bar here, without one it shows its own."""

    def shown(out: Path, scratch: Path) -> None:
        if label is None:
            make(out, scratch)
            return
        with context.progress.stage(label):
            make(out, scratch)

    return context.cache.get_or_make(name, rooms, inputs, shown)


def _load(context: Context, checkpoint: Checkpoint | None) -> LoadedModule:
    """The module of a checkpoint that a stage made; None stands for the original."""
    from exporter.models.load import LoadedModule, load_checkpoint, load_module, preprocessor_from

    source = context.source
    if checkpoint is None:
        return load_module(source)
    return LoadedModule(
        load_checkpoint(
            checkpoint.directory, source.task, trust_remote_code=source.trust_remote_code
        ),
        preprocessor_from(checkpoint.directory, source.task),
        None,
    )


def _save_checkpoint(context: Context, module: Any, out: Path) -> None:
    """Write an ordinary checkpoint, preprocessor included, to `out/checkpoint`."""
    from exporter.models.load import load_preprocessor

    directory = out / "checkpoint"
    module.save_pretrained(directory)
    preprocessor = load_preprocessor(context.source)
    if preprocessor is not None:
        preprocessor.save_pretrained(directory)


def _hash_of(split: Split[Any]) -> str:
    """Content of a split, in order: what each row shows the model, and its label."""
    digest = hashlib.sha256()
    for identity, row in zip(split.ids, split.rows, strict=True):
        digest.update(f"{identity}\0{row.get('label', '')}\n".encode())
    return digest.hexdigest()


def _write(directory: Path, name: str, value: dict[str, Any]) -> None:
    (directory / name).write_text(json.dumps(value, indent=1), encoding="utf-8")


def _read(directory: Path, name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((directory / name).read_text(encoding="utf-8"))
    return value
