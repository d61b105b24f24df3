"""Judge a finished artifact again, here and now, without what trained it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from exporter.artifact import MANIFEST, Artifact, load_artifact
from exporter.budget import Budget
from exporter.cache import Cache, default_cache_directory
from exporter.checked_devices import asked_anew, check_named, opened_devices, readings_of
from exporter.describing import observed, phases_of, slice_rows
from exporter.devices.host import host_description
from exporter.devices.timing import peak_memory
from exporter.evidence import (
    fact,
    model_config,
    read_devices,
    read_json,
    read_measurements,
    read_scores,
    refusing,
)
from exporter.judge.conditions import remarks
from exporter.judge.devices import METRICS as DEVICE_METRICS
from exporter.judge.devices import judge_devices
from exporter.judge.gate import cautions, judge, judge_answers, not_judged
from exporter.judge.latency import rounds_for
from exporter.judge.measure import measure
from exporter.judge.memory import judge_memory
from exporter.judge.reading import Reading, readings_to_json
from exporter.judge.size import judge_size, measure_size
from exporter.judge.verdict import INCONCLUSIVE, Judgement, overall
from exporter.models.examples import Feeds
from exporter.models.scores import Scores
from exporter.models.tasks import Task, get_task
from exporter.pipeline import Result
from exporter.progress import Progress, Silent
from exporter.remains import Remains, remains
from exporter.report.document import Report
from exporter.report.wording import explain
from exporter.ship.bundle import EVIDENCE
from exporter.stages import answers, workload_feeds
from exporter.target import Target, load_target
from exporter.toml import validated


def check(
    artifact: Path | str,
    *,
    target: str | Path | Target | None = None,
    reference: Path | None = None,
    on: Sequence[str] = (),
    python: str | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Result:
    """Judge an artifact again on this machine; nothing is written.

    Size and memory are measured anew. The model answers the test examples anew when they are
    still in the cache, else quality is derived again from the evidence that shipped. Latency needs
    the float32 reference beside it, from the cache or from `reference`.

    Args:
        target: judge against another profile; None takes the artifact's own.
        reference: directory of the float32 model.onnx.
        on: devices to ask, as `exporter devices` lists them; "profile" stands for those that the
            profile lists. What others told when the artifact was made is judged again as it is.
        python: interpreter on devices behind ssh or adb; None takes that of `target`, else python3.

    Raises:
        ArtifactError: it is no artifact, or a file differs from the manifest.
        DeviceMissing: a device in `on` cannot be used here.
    """
    shown = progress or Silent()
    check_named(on)
    found = load_artifact(artifact)
    profile, opened = opened_devices(
        target_of(found, target), on, python, trusted=target is not None
    )
    task = get_task(str(fact(found, "source", "task")))
    here = remains(found, Cache(cache or default_cache_directory()), reference)
    seed, evidence = _seed(found), f"{found.directory}/{EVIDENCE}"
    notes: list[str] = []
    feeds = _feeds(found, here, profile, task)
    told = read_devices(found)
    if opened:
        told = (*told, *asked_anew(opened, on, here, profile, task, feeds, shown))
    readings = readings_of(profile, told)
    before, after = _scores(found, here, task, shown, notes)
    raw = read_json(found, "report.json")
    with refusing(f"{found.directory}/report.json", "must be a report"):
        report = Report.from_json(raw)
    if here.reference is None or feeds is None:
        notes.append(
            "Latency was not compared: the float32 reference is not in the cache; pass --reference."
        )
        with refusing(evidence):
            judgements = _without_reference(found, here, profile, before, after, feeds, readings)
        report = replace(report, phases=(), times={}, environment=host_description())
    else:
        measurements = measure(
            here.reference,
            here.candidate,
            feeds,
            profile.workload,
            threads=profile.threads,
            rounds=rounds_for(profile, host_description()),
            until=profile,
            seed=seed,
            progress=shown,
        )
        with refusing(evidence):
            judgements = judge(before, after, measurements, profile, readings)
        notes += [
            *not_judged(measurements, profile, after, readings),
            *remarks(measurements),
            *cautions(before, measurements, profile.evidence),
        ]
        report = replace(
            report,
            phases=phases_of(measurements, profile),
            environment=measurements.environment,
            times=measurements.answer_times,
        )
    as_json = tuple(j.to_json() for j in judgements)
    verdict = overall(judgements)
    for note in notes:
        shown.note(note)
    with refusing(evidence):
        observations = observed(before, after, profile)
        slices = slice_rows(before, after, profile)
    report = replace(
        report,
        verdict=verdict.value,
        summary=explain(as_json),
        judgements=as_json,
        observations=observations,
        slices=slices,
        devices=tuple(readings_to_json(readings)),
        target=profile.model_dump(mode="json", exclude={"recipe", "budgets"}, exclude_none=True),
        notes=tuple(notes),
    )
    return Result(verdict, found.directory, judgements, report)


def target_of(artifact: Artifact, target: str | Path | Target | None = None) -> Target:
    """The profile asked for, else the artifact's own."""
    if isinstance(target, Target):
        return target
    if target is not None:
        return load_target(target)
    place = f"{artifact.directory}/{MANIFEST}: target"
    return validated(Target, fact(artifact, "target"), place=place)


def _seed(artifact: Artifact) -> int:
    seed = fact(artifact, "seed")
    with refusing(f"{artifact.directory}/{MANIFEST}: seed", "must be a whole number"):
        return int(seed)


def _scores(
    artifact: Artifact, here: Remains, task: Task, progress: Progress, notes: list[str]
) -> tuple[Scores, Scores]:
    """Scores of reference and candidate: anew where that is possible, else the evidence."""
    before, after = read_scores(artifact, "reference"), read_scores(artifact, "candidate")
    if here.examples is None or here.quality_reference is None:
        notes.append(
            "Quality is derived from the evidence that shipped: "
            "the test examples are not in this machine's cache."
        )
        return before, after
    before = answers(task, here.quality_reference, here.examples, progress=progress)
    against = here.quality_reference if task.joint else None
    after = answers(task, here.candidate, here.examples, against=against, progress=progress)
    return before, task.relate(before, after)


def _feeds(artifact: Artifact, here: Remains, target: Target, task: Task) -> Feeds | None:
    """One batch of the workload, made from the files that ship."""
    from exporter.models.load import preprocessor_from

    model = artifact.model_directory
    config = model_config(artifact)
    preprocessor = preprocessor_from(model, task.name)
    if preprocessor is None and here.examples is None:
        return None
    return workload_feeds(task, target, config, preprocessor, here.examples)


def _without_reference(
    artifact: Artifact,
    here: Remains,
    target: Target,
    before: Scores,
    after: Scores,
    feeds: Feeds | None,
    readings: tuple[Reading, ...],
) -> tuple[Judgement, ...]:
    """What can be judged of a candidate alone; a latency ratio cannot, and stays open."""
    shipped = read_measurements(artifact)
    weighed = measure_size(here.candidate)
    told = [
        *judge_answers(before, after, target),
        *judge_devices(readings, target, before.task),
    ]
    quality = {j.metric: j for j in told}
    judgements = []
    for budget in target.budgets.for_task(before.task):
        metric = budget.kind.metric
        if metric in quality:
            judgements.append(quality[metric])
        elif metric in DEVICE_METRICS:
            continue  # no device told
        elif "size" in metric:
            judgements.append(judge_size(shipped.reference_size, weighed, budget))
        elif metric == "peak_memory_mib" and feeds is not None:
            peak = peak_memory(here.candidate, feeds, target.workload, threads=target.threads)
            judgements.append(judge_memory(shipped.reference_memory, (peak,), budget))
        else:
            judgements.append(_open(budget))
    return tuple(judgements)


def _open(budget: Budget) -> Judgement:
    kind = budget.kind
    reason = (
        "It could not be measured: the float32 reference is not on this machine; give --reference."
    )
    return Judgement(
        kind.metric,
        kind.title,
        kind.unit,
        None,
        None,
        None,
        None,
        None,
        budget.limit,
        None,
        INCONCLUSIVE,
        reason,
    )
