"""Stages that make checkpoints: plan rounds, prune, fine-tune."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.compress.ranges import Rounding
from exporter.errors import ExporterError
from exporter.models.examples import Development, Examples, Train
from exporter.recipe import Candidate, FineTune, Pruning
from exporter.stages import Checkpoint, Context, Prepared, read_facts, run_stage, write_facts

if TYPE_CHECKING:
    from exporter.compress.hooks import Hook
    from exporter.models.load import LoadedModule


def rounds(context: Context, pruning: Pruning, largest: float, train: Prepared) -> list[Pruning]:
    """The cut in rounds that each remove at most `largest` of the parameters."""
    examples: Examples[Train] = train.examples

    def make(out: Path, scratch: Path) -> None:
        from exporter.compress.rounds import plan_rounds

        plans = plan_rounds(loaded(context, None).module, context.task, examples, pruning, largest)
        write_facts(out, "facts.json", {"rounds": [plan.model_dump() for plan in plans]})

    entry = run_stage(
        context,
        None,
        "rounds",
        ("models", "compress"),
        {
            "model": context.source.content_hash,
            "task": context.task.name,
            "train": train.key,
            "pruning": pruning.model_dump(),
            "largest": largest,
        },
        make,
    )
    facts = read_facts(entry, "facts.json")
    return [Pruning.model_validate(plan) for plan in facts["rounds"]]


def pruned(
    context: Context, pruning: Pruning, train: Prepared, *, of: Checkpoint | None = None
) -> Checkpoint:
    """A checkpoint, None for the original, with units removed: an ordinary checkpoint again."""
    examples: Examples[Train] = train.examples

    def make(out: Path, scratch: Path) -> None:
        from exporter.compress.prune import prune

        result = prune(
            loaded(context, of).module,
            context.task,
            examples.head(pruning.examples),
            pruning,
            progress=context.progress,
        )
        _save_checkpoint(context, result.module, out)
        write_facts(out, "facts.json", {"removed": result.removed, "skipped": list(result.skipped)})

    entry = run_stage(
        context,
        None,
        "pruned",
        ("models", "compress"),
        {
            "model": context.source.content_hash,
            "task": context.task.name,
            "of": of.key if of else None,
            "train": train.key,
            "pruning": pruning.model_dump(),
        },
        make,
    )
    return Checkpoint(entry / "checkpoint", entry.name, read_facts(entry, "facts.json"))


def fine_tuned(
    context: Context,
    student: Checkpoint | None,
    teacher: Checkpoint | None,
    options: FineTune,
    train: Prepared,
    development: Prepared,
    *,
    distil: bool,
    layers: Sequence[int] | None = None,
    pruning: Pruning | None = None,
    rounding: Rounding | None = None,
) -> Checkpoint:
    """A checkpoint after recovery; `student` or `teacher` None stands for the original.

    Args:
        distil: else the task's own loss alone is used: the equal training of the reference.
        layers: the teacher's layers that the student kept; None if it kept all.
        pruning: whose sparsity rises meanwhile, where it is to.
        rounding: what the student trains to be quantized by; None trains it as it is.
    """
    rising = pruning if pruning is not None and pruning.sparsity_schedule == "cubic" else None
    train_examples: Examples[Train] = train.examples
    development_examples: Examples[Development] = development.examples

    def make(out: Path, scratch: Path) -> None:
        from exporter.compress.finetune import fine_tune
        from exporter.compress.qat import FollowRanges, fake_quantized, observe, released
        from exporter.compress.sparsity import sparsity_of
        from exporter.compress.sparsity_schedule import sparsity_hook

        module = loaded(context, student).module
        hook = (
            sparsity_hook(module, context.task, train_examples, rising)
            if rising is not None
            else None
        )
        hooks: list[Hook] = [hook] if hook is not None else []
        if rounding is not None:
            fake_quantized(module, rounding)
            observe(module, train_examples, options.batch_size)
            hooks.append(FollowRanges(rounding))
        result = fine_tune(
            module,
            loaded(context, teacher).module if distil else None,
            context.task,
            train_examples,
            development_examples,
            options,
            seed=context.recipe.seed,
            scratch=scratch,
            layers=layers,
            hooks=hooks,
            progress=context.progress,
        )
        if hook is not None and not hook.settled(result.best_step, options.steps):
            raise ExporterError(
                "fine-tune: training broke off before the sparsity had risen to "
                f"{pruning.zero_share if pruning else 0:g}; lower fine_tune.learning_rate"
            )
        learned = released(result.module)
        _save_checkpoint(context, result.module, out)
        write_facts(
            out,
            "facts.json",
            ({"quantize_aware": rounding.scheme} if rounding is not None else {})
            | ({"sparsity": round(sparsity_of(result.module), 4)} if hook is not None else {})
            | {"ranges": [asdict(told) for told in learned]}
            | result.facts(),
        )

    entry = run_stage(
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
            "layers": None if layers is None else list(layers),
            "options": options.model_dump(),
            "rounding": asdict(rounding) if rounding is not None else None,
            "rising": rising.model_dump() if rising is not None else None,
            "train": train.key,
            "development": development.key,
            "seed": context.recipe.seed,
        },
        make,
    )
    return Checkpoint(entry / "checkpoint", entry.name, read_facts(entry, "facts.json"))


def rounding_of(context: Context, candidate: Candidate) -> Rounding | None:
    """What a candidate's fine-tuning rounds by: what `quantized` will do; None if it does not."""
    if candidate.fine_tune is None or not candidate.fine_tune.quantize_aware:
        return None
    return Rounding(
        candidate.quantization,
        per_channel=candidate.per_channel,
        safe=context.target.int8_may_saturate,
        block_size=candidate.block_size,
    )


def loaded(context: Context, checkpoint: Checkpoint | None) -> LoadedModule:
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
    from exporter.models.save import save_checkpoint

    save_checkpoint(module, load_preprocessor(context.source), out / "checkpoint")
