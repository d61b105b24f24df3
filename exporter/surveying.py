"""The target's devices: which can be asked from here, and what they say of two models."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from pydantic import ValidationError

from exporter.device_runs import cached, cached_smallest, settings_of
from exporter.devices.device import Device, Job, Ran
from exporter.devices.host import of_class
from exporter.devices.registry import kind_of, open_device
from exporter.devices.runner import fitted
from exporter.errors import DeviceMissing, InputError
from exporter.graph.model import OnnxModel
from exporter.judge.device_cost import costs_only, missing, tells_cost
from exporter.judge.reading import Reading
from exporter.judge.survey import Home, few, home, survey
from exporter.models.examples import Development, Examples, Feeds
from exporter.models.tasks import Task
from exporter.progress import Progress
from exporter.stages import Context
from exporter.target import DeviceEntry, Target, Workload


@dataclass(frozen=True)
class Asked:
    """One entry of the profile: the device, or why it cannot be used here."""

    entry: DeviceEntry
    device: Device | None
    why: DeviceMissing | None = None


def asked(target: Target, names: Collection[str] | None = None) -> list[Asked]:
    """The devices of the profile, opened where they can be used.

    Args:
        names: of those to open, and of no other: opening one may mean to connect to it.

    Raises:
        InputError: the profile names a device that there is not.
    """
    found = []
    for entry in target.devices:
        if names is not None and entry.name not in names:
            continue
        try:
            device = open_device(entry.name, settings_of(entry, target))
            found.append(Asked(entry, device))
        except DeviceMissing as error:
            found.append(Asked(entry, None, error))
    return found


def entry_for(name: str, *, required: bool = False) -> DeviceEntry:
    """The entry of a device that was named on the command line.

    Raises:
        InputError: there is no such device.
    """
    kind_of(name)
    try:
        return DeviceEntry(name=name, required=required)
    except ValidationError as error:
        raise InputError(
            f"--on {name}",
            "must be a kind, or a kind and an option after a colon",
            remedy="see exporter devices.",
        ) from error


def check_names(target: Target) -> None:
    """Refuse a profile with a device that there is not, before any work is done.

    Raises:
        InputError: it is unknown; the closest names are offered.
    """
    for entry in target.devices:
        kind_of(entry.name)


def counted(
    context: Context, reference: OnnxModel, candidate: OnnxModel, feeds: Feeds
) -> tuple[Reading, ...]:
    """What the workload of both models costs on every device of the class that counts instructions.

    For choosing among candidates: no answers are compared, and a CPU that is not the target's has
    no say.
    """
    readings = []
    for one in asked(context.target) if context.devices else []:
        device = one.device
        if device is None or device.traits.cost != "instructions":
            continue
        if not of_class(device.traits.isa, device.traits.features, context.target):
            continue
        if not tells_cost(device, context.target):
            continue
        workload = _fitted(context.target, reference, candidate)
        run = cached(context, one.entry)
        readings.append(costs_only(device, one.entry, reference, candidate, feeds, workload, run))
    return tuple(readings)


def surveyed(
    context: Context,
    reference: OnnxModel,
    candidate: OnnxModel,
    development: Examples[Development],
    feeds: Feeds,
) -> tuple[Reading, ...]:
    """What every device of the profile says of both models, on development data."""
    if not context.devices:
        return unasked(context.target)
    return ask(
        asked(context.target),
        context.task,
        context.target,
        reference,
        candidate,
        development,
        feeds,
        lambda entry: cached(context, entry),
        lambda entry, job: cached_smallest(context, entry, job),
        context.progress,
    )


def unasked(target: Target) -> tuple[Reading, ...]:
    """One reading a device of the profile, none of which was asked on the user's wish."""
    return tuple(missing(entry, "devices were left out (--no-devices)") for entry in target.devices)


def ask(
    devices: list[Asked],
    task: Task,
    target: Target,
    reference: OnnxModel,
    candidate: OnnxModel,
    development: Examples[Development],
    feeds: Feeds,
    runs: Callable[[DeviceEntry], Callable[[Device, Job], Ran]],
    smallest: Callable[[DeviceEntry, Job], int | None],
    progress: Progress,
) -> tuple[Reading, ...]:
    """One reading a device.

    Args:
        runs: for an entry, what runs a job on its device.
        smallest: the smallest memory of a board on which a job runs, see `smallest_board`.
    """
    workload = _fitted(target, reference, candidate)
    homes: dict[int, tuple[Examples[Development], Home]] = {}
    readings = []
    for one in devices:
        if one.device is None:
            readings.append(missing(one.entry, str(one.why).removeprefix(f"{one.entry.name}: ")))
            continue
        count = one.entry.examples
        if count not in homes:
            examples = few(development, count, task)
            homes[count] = (
                examples,
                home(task, reference, candidate, examples, feeds, workload, progress),
            )
        examples, at_home = homes[count]
        reading = survey(
            one.device,
            one.entry,
            task,
            reference,
            candidate,
            examples,
            at_home,
            feeds,
            workload,
            target,
            runs(one.entry),
        )
        if one.device.limits_memory and reading.status == "ran":
            job = Job(candidate.directory, (), feeds, workload, repeats=1)
            reading = replace(reading, smallest_mib={"candidate": smallest(one.entry, job)})
        readings.append(reading)
    return tuple(readings)


def _fitted(target: Target, *models: OnnxModel) -> Workload:
    """The workload as far as the context of every model goes."""
    return Workload(**fitted(target.workload.model_dump(), [m.directory for m in models]))
