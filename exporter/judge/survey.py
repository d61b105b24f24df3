"""Survey: ask one device what it makes of reference and candidate, and compare with here.

The reference's outputs on this machine are what everything is held against, so that a difference
between CPUs is told apart from an error of quantization: the candidate is compared with them
twice, as it answers here and as it answers there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from exporter.devices.device import Device, Job, Traits
from exporter.devices.local import KIND as LOCAL
from exporter.devices.python_device import PythonDevice
from exporter.errors import (
    DeviceError,
)
from exporter.graph.model import OnnxModel
from exporter.graph.saturation import saturations
from exporter.graph.session import OnnxRun, open_run
from exporter.judge.agreement import Answers, agreement, difference, same_tokens
from exporter.judge.device_cost import Runs, cost_of, failed, reading_of, tells_cost, timed
from exporter.judge.reading import Reading
from exporter.models.examples import Development, Examples, Feeds, Outputs
from exporter.models.scores import Scores
from exporter.models.tasks import Task
from exporter.progress import Progress
from exporter.target import VNNI, DeviceEntry, Target, Workload

# The reference need not answer as much as the candidate: its float32 outputs agree or they do not.
FLOAT_CALLS = 3
# Runs of the workload for its cost: counts repeat, times do not.
COUNTS, TIMES = 2, 3


@dataclass(frozen=True)
class Home:
    """Everything that a survey holds a device's answers against, made once for all devices."""

    reference: Answers
    candidate: Answers
    tokens: NDArray[Any] | None  # that the candidate writes here, (batch, n)


def home(
    task: Task,
    reference: OnnxModel,
    candidate: OnnxModel,
    examples: Examples[Development],
    feeds: Feeds,
    workload: Workload,
    progress: Progress,
) -> Home:
    """What both models answer here, by the files that ship."""
    examples.require(Development)
    runs = open_run(reference), open_run(candidate)
    before = _answers(task, runs[0], examples, None)
    after = _answers(task, runs[1], examples, runs[0] if task.joint else None)
    after = replace(after, scores=task.relate(before.scores, after.scores))
    tokens = None
    if any(name.startswith("past_key_values") for name in runs[1].inputs):
        job = Job(candidate.directory, (), feeds, workload, repeats=1)
        tokens = LOCAL.open("", {}).run(job, timeout_s=_HERE_S, progress=progress).tokens
    return Home(before, after, tokens)


_HERE_S = 3600.0


def few(examples: Examples[Development], count: int, task: Task) -> Examples[Development]:
    """The first `count` examples; of a language model's documents the first window each."""
    head = examples.head(count)
    if task.name != "text-generation":
        return head
    first = [i for i, owner in enumerate(head.owner) if owner not in head.owner[:i]]
    return replace(
        head,
        feeds=tuple(head.feeds[i] for i in first),
        owner=tuple(head.owner[i] for i in first),
    )


def survey(
    device: Device,
    entry: DeviceEntry,
    task: Task,
    reference: OnnxModel,
    candidate: OnnxModel,
    examples: Examples[Development],
    at_home: Home,
    feeds: Feeds,
    workload: Workload,
    target: Target,
    run: Runs,
) -> Reading:
    """Run both models on `device` and say how they agree with here and what they cost.

    Args:
        examples: those that `at_home` answered.
        feeds: one batch of the workload.
        run: runs a job on the device.
    """
    found = reading_of(device, entry, len(examples))
    may = may_saturate(device.traits, candidate)

    costs = feeds if tells_cost(device, target) else None
    counts = device.traits.cost == "instructions"

    def job(model: OnnxModel, calls: tuple[Feeds, ...]) -> Job:
        threads = target.threads if device.traits.cost == "ms" else 1
        repeats = COUNTS if counts else TIMES
        return Job(model.directory, calls, costs, workload, repeats=repeats, threads=threads)

    try:
        after = run(device, job(candidate, at_home.candidate.calls))
    except DeviceError as error:
        return failed(found, error)
    found = replace(
        found,
        runtime=after.runtime,
        here=agreement(at_home.reference, at_home.candidate.outputs, at_home.candidate.scores),
        there=agreement(
            at_home.reference,
            after.outputs,
            _scores_of(task, after.outputs, examples, at_home),
        ),
        same_tokens=same_tokens(at_home.tokens, after.tokens),
        candidate=cost_of(after, workload),
        facts={**after.facts, **({"saturation": may} if may else {})},
    )
    calls = at_home.reference.calls[:FLOAT_CALLS]
    try:
        before = run(device, job(reference, calls))
    except DeviceError as error:
        return replace(found, float_reason=str(error))
    found = replace(
        found,
        float_difference=difference(at_home.reference.outputs[: len(calls)], before.outputs),
        reference=cost_of(before, workload),
    )
    if not (isinstance(device, PythonDevice) and device.traits.cost == "ms"):
        return found
    models = {"reference": reference.directory, "candidate": candidate.directory}
    try:
        return timed(found, device, models, feeds, workload, target, entry.timeout_s)
    except DeviceError as error:
        return replace(found, facts={**found.facts, "timing": str(error)})


def may_saturate(traits: Traits, candidate: OnnxModel) -> list[str]:
    """Operators and channels whose sums can saturate there, for x86 CPUs that add in int16."""
    if traits.isa != "x86-64" or set(traits.features) & VNNI:
        return []
    return [str(risk) for risk in saturations(candidate)[0]]


def _answers(task: Task, run: OnnxRun, examples: Examples[Any], against: OnnxRun | None) -> Answers:
    calls: list[Feeds] = []
    outputs: list[Outputs] = []

    def recorded(feeds: Feeds) -> Outputs:
        calls.append(run.complete(feeds))
        outputs.append(run(feeds))
        return outputs[-1]

    scores = task.score(recorded, examples, against=against, workers=1)
    return Answers(tuple(calls), tuple(outputs), scores)


def _scores_of(
    task: Task,
    outputs: tuple[Outputs, ...],
    examples: Examples[Any],
    at_home: Home,
) -> Scores:
    """The task's scores of outputs that came back from a device, in the order of the calls."""
    left = iter(outputs)
    again = iter(at_home.reference.outputs)
    scores = task.score(
        lambda feeds: next(left),
        examples,
        against=(lambda feeds: next(again)) if task.joint else None,
        workers=1,
    )
    return task.relate(at_home.reference.scores, scores)
