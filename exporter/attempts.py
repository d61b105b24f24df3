"""One candidate of the recipe, built and judged on development data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

from exporter import building, checkpoints, stages
from exporter.compress.ranges import LearnedRange
from exporter.errors import ExporterError, InputError
from exporter.judge.gate import judge
from exporter.judge.measure import Measurements
from exporter.judge.reading import Reading
from exporter.judge.verdict import INCONCLUSIVE, Judgement
from exporter.models.examples import Feeds
from exporter.models.scores import Scores
from exporter.models.splits import Splits
from exporter.recipe import Candidate, FineTune
from exporter.rounds import recovered
from exporter.stages import Built, Checkpoint, Context, Prepared, about
from exporter.surveying import counted

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
class Construction:
    """A candidate as it was built.

    Attributes:
        built: the model.
        float_built: the float32 graph it was quantized from.
        checkpoint: what pruning and fine-tuning made, when there was any.
        teacher: what recovery went towards (None: the original, or there was no recovery), and
            the graph of the model whose quality it is judged against.
        removed: what pruning removed, JSON-ready, when something was.
        recovery: how fine-tuning went, JSON-ready, when there was any.
    """

    built: Built
    float_built: Built
    checkpoint: Checkpoint | None
    teacher: tuple[Checkpoint | None, Built]
    removed: dict[str, object] | None
    recovery: dict[str, object] | None

    @property
    def reference(self) -> Built:
        """The model whose quality it is judged against."""
        return self.teacher[1]


@dataclass(frozen=True)
class Attempt:
    """What came of one candidate.

    Attributes:
        status: "judged" on development data, "skipped" (does not apply), "failed" (an error).
        reason: why it was skipped or failed; empty otherwise.
        error: the reason of one that failed.
        made: the model and how it came to be, when judged.
        scores, measurements, judgements: on development data.
        readings: what its workload costs on devices that count instructions.
    """

    candidate: Candidate
    status: Literal["judged", "skipped", "failed"]
    reason: str = ""
    made: Construction | None = None
    scores: Scores | None = None
    measurements: Measurements | None = None
    judgements: tuple[Judgement, ...] = ()
    readings: tuple[Reading, ...] = ()
    error: ExporterError | None = None

    @property
    def instruction_ratio(self) -> float | None:
        """Instructions over the reference's, on the device where they fell least, or None."""
        counted = [r.cost_ratio for r in self.readings if r.cost_ratio is not None]
        return max(counted, default=None)

    @property
    def cost_ratio(self) -> float:
        """What candidates are ranked by: instructions of the target's CPU, else latency here."""
        counted = self.instruction_ratio
        return self.latency_ratio if counted is None else counted

    @property
    def latency_ratio(self) -> float:
        """Latency over the reference's; infinite when it was not measured."""
        ratio = self.measurements.latency_ratio.value if self.measurements else math.inf
        return ratio if math.isfinite(ratio) else math.inf


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
        return Attempt(candidate, "failed", str(error), error=error)


def _attempt(
    context: Context, candidate: Candidate, reference: Built, material: Material
) -> Attempt:
    reason = _does_not_apply(context, candidate, reference)
    if reason is not None:
        context.progress.note(f"skipped: {reason}")
        return Attempt(candidate, "skipped", reason)
    try:
        made = construct(context, candidate, reference, material)
    except _NothingRemoved as nothing:
        context.progress.note(f"skipped: {nothing}")
        return Attempt(candidate, "skipped", str(nothing))
    before, after = stages.judged_scores(context, made.reference, made.built, material.development)
    measurements = stages.measured(
        context, reference, made.built, material.feeds, DEVELOPMENT_ROUNDS
    )
    readings = counted(context, reference.model, made.built.model, material.feeds)
    return Attempt(
        candidate,
        "judged",
        made=made,
        scores=after,
        measurements=measurements,
        judgements=_decidable(judge(before, after, measurements, context.target, readings)),
        readings=readings,
    )


def _decidable(judgements: tuple[Judgement, ...]) -> tuple[Judgement, ...]:
    """Without latencies that DEVELOPMENT_ROUNDS left open and that look good.

    They would leave candidates open by chance, and a slower one would be chosen for a quieter
    moment. The fastest is taken anyway; the final timing decides what it may claim.
    """
    return tuple(
        j
        for j in judgements
        if not (
            j.metric in ("latency_ratio", "latency_p95_ms")
            and j.verdict == INCONCLUSIVE
            and (j.margin or 0) > 0
        )
    )


def _does_not_apply(context: Context, candidate: Candidate, reference: Built) -> str | None:
    from exporter.quantize import get_scheme

    needs_module = candidate.pruning is not None or candidate.fine_tune is not None
    if needs_module and context.source.kind != "checkpoint":
        return (
            "pruning and fine-tuning need a Hugging Face checkpoint, "
            f"and this is {'an .onnx file' if context.source.kind == 'onnx' else 'a plain module'}"
        )
    return get_scheme(candidate.quantization).applies(reference.model, context.task.name)


class _NothingRemoved(Exception):
    """Pruning was asked for and the family has nothing that it could remove."""


def construct(
    context: Context,
    candidate: Candidate,
    reference: Built,
    material: Material,
    *,
    teacher: tuple[Checkpoint | None, Built] | None = None,
) -> Construction:
    """Prune, fine-tune, export and quantize as the candidate says.

    Args:
        teacher: the model to recover towards, and its graph; None trains the original on for as
            many steps where the candidate asks for it.
    """

    @cache
    def trained() -> tuple[Checkpoint | None, Built]:
        if teacher is not None or candidate.fine_tune is None:
            return teacher or (None, reference)
        return _equally_trained(context, candidate.fine_tune, reference, material)

    recovery = recovered(
        context, candidate, lambda: trained()[0], material.train, material.development
    )
    for why in recovery.skipped:
        context.progress.note(why)
    if candidate.pruning is not None and not recovery.removed:
        raise _NothingRemoved("; ".join(recovery.skipped))
    checkpoint = recovery.checkpoint
    learned = [LearnedRange(**told) for told in recovery.ranges]
    float_built = building.exported(context, checkpoint) if checkpoint is not None else reference
    return Construction(
        building.quantized(
            context, float_built, candidate, material.calibration, material.feeds, learned
        ),
        float_built,
        checkpoint,
        trained(),
        recovery.removed,
        recovery.recovery,
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
    checkpoint = checkpoints.fine_tuned(
        context, None, None, options, material.train, material.development, distil=False
    )
    if not checkpoint.facts["best_step"]:
        return None, reference  # training never helped
    return checkpoint, building.exported(context, checkpoint)
