"""One candidate of the recipe, built and judged on development data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from exporter import building, stages
from exporter.errors import ExporterError, InputError
from exporter.judge.gate import judge
from exporter.judge.measure import Measurements
from exporter.judge.verdict import Judgement
from exporter.models.examples import Feeds
from exporter.models.scores import Scores
from exporter.models.splits import Splits
from exporter.recipe import Candidate, FineTune
from exporter.stages import Built, Checkpoint, Context, Prepared, about

# Enough rounds to rank candidates; the final timing takes the profile's number.
DEVELOPMENT_ROUNDS = 15
# Of the development split at most, so that a choice costs seconds or minutes, not hours.
DEVELOPMENT_EXAMPLES = 4000
# Training examples that are prepared at least; more if a candidate's fine-tuning reads more.
TRAIN_EXAMPLES = 1024


@dataclass(frozen=True)
class Material:
    """The data of one run, prepared."""

    train: Prepared
    calibration: Prepared
    development: Prepared
    feeds: Feeds  # of the workload, for timing


@dataclass(frozen=True)
class Attempt:
    """What came of one candidate.

    Attributes:
        status: "judged" on development data, "skipped" (does not apply), "failed" (an error).
        reason: why it was skipped or failed; empty otherwise.
        built: the model, when judged.
        float_built: the float32 graph it was quantized from.
        checkpoint: what pruning and fine-tuning made, when there was any.
        reference: the model whose quality it is judged against.
        scores, measurements, judgements: on development data.
        removed: what pruning removed, JSON-ready, when something was.
        recovery: how fine-tuning went, JSON-ready, when there was any.
    """

    candidate: Candidate
    status: Literal["judged", "skipped", "failed"]
    reason: str = ""
    built: Built | None = None
    float_built: Built | None = None
    checkpoint: Checkpoint | None = None
    reference: Built | None = None
    scores: Scores | None = None
    measurements: Measurements | None = None
    judgements: tuple[Judgement, ...] = ()
    removed: dict[str, object] | None = None
    recovery: dict[str, object] | None = None

    @property
    def latency_ratio(self) -> float:
        """Latency over the reference's; infinite when it was not measured."""
        return self.measurements.latency_ratio.value if self.measurements else float("inf")


def prepare(context: Context, splits: Splits) -> Material:
    """Everything but the test split, ready for the stages."""
    from exporter.models.load import load_preprocessor

    source = context.source
    development = stages.prepare(context, splits.development, DEVELOPMENT_EXAMPLES)
    return Material(
        stages.prepare(context, splits.train, _train_examples(context)),
        stages.prepare(context, splits.calibration),
        development,
        stages.workload_feeds(
            context.task,
            context.target,
            source.config,
            load_preprocessor(source),
            development.examples,
        ),
    )


def _train_examples(context: Context) -> int:
    """As many training examples as the hungriest candidate of the recipe reads."""
    needs = [TRAIN_EXAMPLES]
    for candidate in context.recipe.for_task(context.task.name):
        if candidate.fine_tune is not None:
            needs.append(candidate.fine_tune.steps * candidate.fine_tune.batch_size)
        if candidate.pruning is not None:
            needs.append(candidate.pruning.examples)
    return max(needs)


def attempt(
    context: Context, candidate: Candidate, reference: Built, material: Material
) -> Attempt:
    """Build one candidate and judge it on development data.

    A candidate that cannot be built is a line in the report, not the end of the run.
    """
    try:
        return _attempt(about(context, candidate.name), candidate, reference, material)
    except (InputError, OSError):
        raise
    except ExporterError as error:
        context.progress.note(f"{candidate.name}: failed: {error}")
        return Attempt(candidate, "failed", str(error))


def _attempt(
    context: Context, candidate: Candidate, reference: Built, material: Material
) -> Attempt:
    from exporter.quantize import get_scheme

    def skipped(reason: str) -> Attempt:
        context.progress.note(f"skipped: {reason}")
        return Attempt(candidate, "skipped", reason)

    needs_module = candidate.pruning is not None or candidate.fine_tune is not None
    if needs_module and context.source.kind != "checkpoint":
        return skipped(
            "pruning and fine-tuning need a Hugging Face checkpoint, "
            f"and this is {'an .onnx file' if context.source.kind == 'onnx' else 'a plain module'}"
        )
    reason = get_scheme(candidate.quantization).applies(reference.model, context.task.name)
    if reason is not None:
        return skipped(reason)

    checkpoint: Checkpoint | None = None
    removed: dict[str, Any] | None = None
    recovery: dict[str, Any] | None = None
    float_reference, float_candidate = reference, reference
    if candidate.pruning is not None:
        checkpoint = building.pruned(context, candidate.pruning, material.train)
        removed = checkpoint.facts["removed"]
        for why in checkpoint.facts["skipped"]:
            context.progress.note(why)
        if not removed:
            return skipped("; ".join(checkpoint.facts["skipped"]))
    if candidate.fine_tune is not None:
        teacher, float_reference = _equally_trained(
            context, candidate.fine_tune, reference, material
        )
        checkpoint = building.fine_tuned(
            context,
            checkpoint,
            teacher,
            candidate.fine_tune,
            material.train,
            material.development,
            distil=True,
        )
        recovery = dict(checkpoint.facts)
    if checkpoint is not None:
        float_candidate = building.exported(context, checkpoint)

    built = building.quantized(
        context, float_candidate, candidate, material.calibration, material.feeds
    )
    before, after = stages.judged_scores(context, float_reference, built, material.development)
    measurements = stages.measured(context, reference, built, material.feeds, DEVELOPMENT_ROUNDS)
    return Attempt(
        candidate,
        "judged",
        built=built,
        float_built=float_candidate,
        checkpoint=checkpoint,
        reference=float_reference,
        scores=after,
        measurements=measurements,
        judgements=judge(before, after, measurements, context.target),
        removed=removed,
        recovery=recovery,
    )


def _equally_trained(
    context: Context, options: FineTune, reference: Built, material: Material
) -> tuple[Checkpoint | None, Built]:
    """The original, or the original trained on for as many steps if that made it better.

    Recovery gets extra training; a reference that would have gained from the same training
    must have it too, or extra epochs are mistaken for free compression.
    """
    if not options.train_reference:
        return None, reference
    context = about(context, "reference, trained as long")
    checkpoint = building.fine_tuned(
        context, None, None, options, material.train, material.development, distil=False
    )
    if not checkpoint.facts["best_step"]:
        return None, reference  # training never helped
    return checkpoint, building.exported(context, checkpoint)
