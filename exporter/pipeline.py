"""The journey: importance, prune, fine-tune, export, quantize, choose, check, ship."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter import building, stages
from exporter.artifact import publishing
from exporter.attempts import Attempt, attempt, prepare
from exporter.cache import Cache, default_cache_directory
from exporter.choose import best
from exporter.errors import DataError, ExporterError, ModelError, ProfileError, RuntimeTooOld
from exporter.judge.devices import devices_not_judged
from exporter.judge.verdict import Judgement, Verdict, overall
from exporter.models.source import resolve_source
from exporter.models.splits import Splits, make_splits
from exporter.models.tasks import get_task
from exporter.progress import Progress, Silent
from exporter.recipe import Recipe, recipe_from
from exporter.report.document import Report
from exporter.shipping import ship
from exporter.signature import read_private_key, sign
from exporter.stability import final_judgement, repeat
from exporter.stages import Context, about
from exporter.supporting import refuse_runtime
from exporter.surveying import check_names
from exporter.target import Target, load_target


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


def export(
    model: str | Path,
    *,
    data: str | Path | None,
    target: str | Path | Target = "mobile",
    task: str | None = None,
    recipe: Recipe | Path | str | dict[str, Any] | None = None,
    out: Path | str | None = None,
    columns: Mapping[str, str] | None = None,
    slices: Sequence[str] = (),
    show_examples: bool = True,
    seed: int | None = None,
    seeds: int = 1,
    fresh: bool = False,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    key: Path | str | None = None,
    devices: bool = True,
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
        slices: columns whose values group the examples; the worst group is judged and shown.
        show_examples: whether the report may quote test examples.
        seed: replaces the recipe's.
        seeds: how often recovery and calibration are done, each time with the next seed, to see
            whether others come to the same verdict; the first one ships.
        fresh: redo finished stages.
        devices: whether the devices that the profile lists are asked, as far as they are usable.
        key: PEM file of the private Ed25519 key that signs the manifest; None: unsigned.
        cache: directory of finished stages; default `$EXPORTER_CACHE`, else the user's cache.

    Raises:
        InputError: something given is wrong; nothing was changed.
        ExporterError: the tool failed; finished stages are kept.
    """
    signer = None if key is None else read_private_key(key)
    profile = resolve_target(target, recipe, seed)
    check_names(profile)
    if data is None:
        raise DataError("--data", "is missing", remedy="give the task's examples; see --help.")
    source = resolve_source(
        str(model), task=task, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code
    )
    directory = Path(out) if out is not None else Path("dist") / f"{source.name}-{profile.name}"
    with publishing(directory) as new:
        context = Context(
            source,
            get_task(source.task),
            profile,
            profile.recipe,
            Cache(cache or default_cache_directory(), fresh=fresh),
            progress or Silent(),
            devices,
        )
        splits = read_splits(context, str(data), columns, slices)
        material = prepare(context, splits)
        reference = building.reference_graph(about(context, "reference"))
        refuse_runtime(profile, reference.model)
        attempts = [
            attempt(context, candidate, reference, material)
            for candidate in context.recipe.for_task(source.task)
        ]
        chosen = best(attempts)
        if chosen is None or chosen.made is None:
            raise nothing_built(context, attempts)
        test = stages.prepare(context, splits.test)
        outcome = final_judgement(
            about(context, chosen.candidate.name),
            reference,
            chosen.made,
            test,
            material.feeds,
            development=material.development,
        )
        stability = repeat(
            context, chosen, reference, material, splits, test, outcome.judgements, seeds
        )
        report = ship(
            new,
            context,
            splits=splits,
            data=str(data),
            columns=dict(columns or {}),
            slices=slices,
            seeds=seeds,
            show_examples=show_examples,
            attempts=attempts,
            chosen=chosen,
            stability=stability,
            reference=reference,
            test=test,
            development=material.development,
            outcome=outcome,
            out=directory,
        )
        if signer is not None:
            sign(new, signer)
    for note in devices_not_judged(outcome.devices, profile, source.task):
        context.progress.note(note)
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


def read_splits(
    context: Context, data: str, columns: Mapping[str, str] | None, slices: Sequence[str]
) -> Splits:
    """The data, divided; see `make_splits`."""
    with context.progress.stage("read and split the data"):
        return make_splits(
            data,
            context.task,
            columns=columns,
            label_names=context.source.config.get("label2id"),
            seed=context.recipe.seed,
            calibration_examples=context.recipe.calibration_examples,
            slices=slices,
        )


def nothing_built(context: Context, attempts: list[Attempt]) -> ExporterError:
    """Why there is nothing to ship."""
    reasons = "; ".join(f"{a.candidate.name}: {a.reason}" for a in attempts)
    if all(a.status == "skipped" for a in attempts):
        return ModelError(
            context.source.location,
            f"no candidate of the recipe applies to it ({reasons or 'none is for this task'})",
            remedy="give a --recipe with a candidate that does.",
        )
    failed = [a.error for a in attempts if a.status != "skipped"]
    if all(isinstance(error, RuntimeTooOld) for error in failed):
        return ProfileError(
            f"target {context.target.name}",
            f"runtime_version must take a candidate of the recipe ({reasons})",
            got=context.target.runtime_version,
            remedy="name a later one, or give a --recipe with another quantization.",
        )
    return ExporterError(f"no candidate could be built: {reasons}")
