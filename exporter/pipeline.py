"""The journey: importance, prune, fine-tune, export, quantize, choose, check, ship."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from exporter import stages
from exporter.artifact import publishing
from exporter.cache import Cache, default_cache_directory
from exporter.choose import Attempt, best
from exporter.devices.local import host_description
from exporter.errors import DataError, ExporterError, InputError, ModelError
from exporter.judge.gate import judge
from exporter.judge.latency import rounds_for
from exporter.judge.verdict import Judgement, Verdict, overall
from exporter.models.examples import Feeds
from exporter.models.source import resolve_source
from exporter.models.splits import Splits, make_splits
from exporter.models.tasks import get_task
from exporter.progress import Prefixed, Progress, Silent
from exporter.recipe import Candidate, FineTune, Recipe, recipe_from
from exporter.report.document import Report
from exporter.shipping import Outcome, ship
from exporter.stages import Built, Checkpoint, Context, Prepared
from exporter.target import Target, load_target

# Enough rounds to rank candidates; the final timing takes the profile's number.
DEVELOPMENT_ROUNDS = 15
# Of the development split at most, so that a choice costs seconds or minutes, not hours.
DEVELOPMENT_EXAMPLES = 4000
# Training examples that are prepared at least; more if a candidate's fine-tuning reads more.
TRAIN_EXAMPLES = 1024


@dataclass(frozen=True)
class Result:
    """What a run or a check came to.

    Attributes:
        verdict: PASS, FAIL or INCONCLUSIVE; equal to the string of that name.
        directory: the artifact.
        judgements: one a budget, on test data and this machine.
        report: everything the reports show.
    """

    verdict: Verdict
    directory: Path
    judgements: tuple[Judgement, ...]
    report: Report

    @property
    def exit_code(self) -> int:
        """0 passed, 1 failed, 3 inconclusive."""
        return self.verdict.exit_code


@dataclass(frozen=True)
class Material:
    """The data of one run, prepared."""

    train: Prepared
    calibration: Prepared
    development: Prepared
    feeds: Feeds  # of the workload, for timing


def export(
    model: str | Path,
    *,
    data: str | Path | None,
    target: str | Path | Target = "mobile",
    task: str | None = None,
    recipe: Recipe | Path | str | dict[str, Any] | None = None,
    out: Path | str | None = None,
    columns: Mapping[str, str] | None = None,
    seed: int | None = None,
    fresh: bool = False,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Result:
    """Make `model` fit `target`, judge it on data no step has seen, and publish what ships.

    Args:
        model: checkpoint directory, hub id, .onnx file, or `package.module:function`.
        data: JSONL, CSV, Parquet, `datasets` directory, directory of split files, image folder,
            or `package.module:function`.
        target: profile name, path to a .toml file, or a Target.
        task: None to infer it.
        recipe: replaces the profile's.
        out: the artifact's directory; default `dist/<model>-<target>`.
        columns: canonical column -> its name in the data.
        seed: replaces the recipe's.
        fresh: redo finished stages.
        cache: directory of finished stages; default `$EXPORTER_CACHE`, else the user's cache.

    Raises:
        InputError: something given is wrong; nothing was changed.
        ExporterError: the tool failed; finished stages are kept.
    """
    profile = resolve_target(target, recipe, seed)
    if data is None:
        raise DataError("--data", "is missing", remedy="give the task's examples; see --help.")
    source = resolve_source(
        str(model), task=task, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code
    )
    directory = Path(out) if out is not None else Path("dist") / f"{source.name}-{profile.name}"
    with publishing(directory) as building:
        context = Context(
            source,
            get_task(source.task),
            profile,
            profile.recipe,
            Cache(cache or default_cache_directory(), fresh=fresh),
            progress or Silent(),
        )
        splits = read_splits(context, str(data), columns)
        material = prepare(context, splits)
        reference = stages.reference_graph(_about(context, "reference"))
        attempts = [
            attempt(context, candidate, reference, material)
            for candidate in context.recipe.for_task(source.task)
        ]
        chosen = best(attempts)
        if chosen is None or chosen.built is None or chosen.reference is None:
            raise nothing_built(context, attempts)
        test = stages.prepare(context, splits.test)
        outcome = final_judgement(
            _about(context, chosen.candidate.name), reference, chosen, test, material.feeds
        )
        report = ship(
            building,
            context,
            splits=splits,
            data=str(data),
            columns=dict(columns or {}),
            attempts=attempts,
            chosen=chosen,
            reference=reference,
            test=test,
            outcome=outcome,
            out=directory,
        )
    return Result(overall(outcome.judgements), directory, outcome.judgements, report)


def resolve_target(
    target: str | Path | Target,
    recipe: Recipe | Path | str | dict[str, Any] | None,
    seed: int | None,
) -> Target:
    """The profile with the recipe and the seed that replace its own."""
    profile = target if isinstance(target, Target) else load_target(target)
    chosen = recipe_from(recipe) if recipe is not None else profile.recipe
    if seed is not None:
        chosen = chosen.model_copy(update={"seed": seed})
    return profile.model_copy(update={"recipe": chosen})


def read_splits(context: Context, data: str, columns: Mapping[str, str] | None) -> Splits:
    """The data, divided; see `make_splits`."""
    with context.progress.stage("read and split the data"):
        return make_splits(
            data,
            context.task,
            columns=columns,
            label_names=context.source.config.get("label2id"),
            seed=context.recipe.seed,
            calibration_examples=context.recipe.calibration_examples,
        )


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
        return _attempt(_about(context, candidate.name), candidate, reference, material)
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
        checkpoint = stages.pruned(context, candidate.pruning, material.train)
        removed = checkpoint.facts["removed"]
        for why in checkpoint.facts["skipped"]:
            context.progress.note(why)
        if not removed:
            return skipped("; ".join(checkpoint.facts["skipped"]))
    if candidate.fine_tune is not None:
        teacher, float_reference = _equally_trained(
            context, candidate.fine_tune, reference, material
        )
        checkpoint = stages.fine_tuned(
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
        float_candidate = stages.exported(context, checkpoint)

    built = stages.quantized(
        context, float_candidate, candidate, material.calibration, material.feeds
    )
    before = stages.scored(_about(context, "reference"), float_reference, material.development)
    after = stages.scored(context, built, material.development)
    after = context.task.relate(before, after)
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
    context = _about(context, "reference, trained as long")
    checkpoint = stages.fine_tuned(
        context, None, None, options, material.train, material.development, distil=False
    )
    if not checkpoint.facts["best_step"]:
        return None, reference  # training never helped
    return checkpoint, stages.exported(context, checkpoint)


def final_judgement(
    context: Context, reference: Built, chosen: Attempt, test: Prepared, feeds: Feeds
) -> Outcome:
    """The one reading of the test split, and the full timing, of the candidate that ships."""
    if chosen.built is None or chosen.reference is None:
        raise ValueError("only an attempt that was built can be judged")
    before = stages.scored(_about(context, "reference"), chosen.reference, test)
    after = context.task.relate(before, stages.scored(context, chosen.built, test))
    rounds = rounds_for(context.target, host_description())
    measurements = stages.measured(context, reference, chosen.built, feeds, rounds)
    judgements = judge(before, after, measurements, context.target)
    return Outcome(before, after, measurements, judgements)


def _about(context: Context, name: str) -> Context:
    """The context whose progress says what it works on."""
    return replace(context, progress=Prefixed(context.progress, name))


def nothing_built(context: Context, attempts: list[Attempt]) -> ExporterError:
    """Why there is nothing to ship."""
    reasons = "; ".join(f"{a.candidate.name}: {a.reason}" for a in attempts)
    if all(a.status == "skipped" for a in attempts):
        return ModelError(
            context.source.location,
            f"no candidate of the recipe applies to it ({reasons or 'none is for this task'})",
            remedy="give a --recipe with a candidate that does.",
        )
    return ExporterError(f"no candidate could be built: {reasons}")
