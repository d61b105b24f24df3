"""The target's devices: which can be asked from here, and what they say of two models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from exporter.devices.device import Device, Job, Ran
from exporter.devices.registry import kind_of, open_device
from exporter.devices.runner import fitted
from exporter.devices.smallest import memory_bounds_mib, smallest_memory
from exporter.errors import DeviceMissing, InputError
from exporter.graph.model import OnnxModel
from exporter.judge.reading import Reading
from exporter.judge.survey import Home, costs_only, few, home, survey, tells_cost
from exporter.judge.survey import missing as missing
from exporter.models.examples import Development, Examples, Feeds
from exporter.models.tasks import Task
from exporter.models.text import feeds_id
from exporter.progress import Progress
from exporter.stages import Context, read_facts, run_stage, write_facts
from exporter.target import DeviceEntry, Target, Workload

# What counts or computes the same whenever it is asked the same may come from the cache.
_REPEATABLE = ("instructions", "guest_s")


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


def settings_of(entry: DeviceEntry, target: Target) -> dict[str, Any]:
    """What a device is opened with: its entry, and the memory that the profile grants."""
    return {**entry.model_dump(exclude_none=True), "memory_mib": target.memory_mib}


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
    """What the workload of both models costs on every device that counts instructions.

    For choosing among candidates: no answers are compared.
    """
    readings = []
    for one in asked(context.target) if context.devices else []:
        device = one.device
        if device is None or device.traits.cost != "instructions":
            continue
        if not tells_cost(device, context.target):
            continue
        workload = _fitted(context.target, reference, candidate)
        run = _runs(context, one.entry)
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
        lambda entry: _runs(context, entry),
        lambda entry, job: _smallest(context, entry, job),
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
            readings.append(missing(one.entry, str(one.why)))
            continue
        count = one.entry.examples
        if count not in homes:
            examples = few(development, count)
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
        if one.entry.name.startswith("board") and reading.status == "ran":
            job = Job(candidate.directory, (), feeds, workload, repeats=1)
            reading = replace(reading, smallest_mib={"candidate": smallest(one.entry, job)})
        readings.append(reading)
    return tuple(readings)


def smallest_board(entry: DeviceEntry, job: Job, target: Target, progress: Progress) -> int | None:
    """The smallest memory (MiB) of the board `entry` on which `job` runs, up to the profile's."""
    settings = settings_of(entry, target)
    low, _ = memory_bounds_mib(job.model)
    return smallest_memory(
        lambda changed: open_device(entry.name, {**settings, **changed}),
        job,
        min(low, target.memory_mib),
        target.memory_mib,
        timeout_s=entry.timeout_s,
        progress=progress,
    )


def uncached(entry: DeviceEntry, progress: Progress) -> Callable[[Device, Job], Ran]:
    """Runs that are really made."""
    return lambda device, job: device.run(job, timeout_s=entry.timeout_s, progress=progress)


def _fitted(target: Target, *models: OnnxModel) -> Workload:
    """The workload as far as the context of every model goes."""
    return Workload(**fitted(target.workload.model_dump(), [m.directory for m in models]))


def _runs(context: Context, entry: DeviceEntry) -> Callable[[Device, Job], Ran]:
    """Runs that come from the cache where the same was asked before and cannot differ."""
    really = uncached(entry, context.progress)

    def run(device: Device, job: Job) -> Ran:
        if device.traits.cost not in _REPEATABLE:
            return really(device, job)

        def make(out: Path, scratch: Path) -> None:
            save_ran(really(device, job), out)

        inputs = {
            "device": asdict(device.traits),
            "identity": device.identity,
            **_job_inputs(job),
        }
        return load_ran(run_stage(context, None, "ran", ("devices",), inputs, make))

    return run


def _smallest(context: Context, entry: DeviceEntry, job: Job) -> int | None:
    """`smallest_board`, once for the same model and board."""

    def make(out: Path, scratch: Path) -> None:
        found = smallest_board(entry, job, context.target, context.progress)
        write_facts(out, "smallest.json", {"mib": found})

    inputs = {
        "board": open_device(entry.name, settings_of(entry, context.target)).identity,
        **_job_inputs(job),
    }
    stage = run_stage(context, None, "smallest-memory", ("devices",), inputs, make)
    found: int | None = read_facts(stage, "smallest.json")["mib"]
    return found


def _job_inputs(job: Job) -> dict[str, Any]:
    return {
        "model": OnnxModel(job.model).weights_sha256(),
        "session": _session(job.model),
        "calls": [feeds_id(call) for call in job.calls],
        "feeds": None if job.feeds is None else feeds_id(job.feeds),
        "workload": job.workload.model_dump(),
        "repeats": job.repeats,
    }


def _session(model: Path) -> str:
    path = model / "session.json"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def save_ran(ran: Ran, directory: Path) -> None:
    """Write what came back from a device to `directory`."""
    arrays: dict[str, Any] = {
        f"{index}/{name}": array
        for index, outputs in enumerate(ran.outputs)
        for name, array in outputs.items()
    }
    for name in ("tokens", "logits"):
        if getattr(ran, name) is not None:
            arrays[name] = getattr(ran, name)
    np.savez(directory / "ran.npz", **arrays)
    facts = asdict(replace(ran, outputs=(), tokens=None, logits=None))
    facts["calls"] = len(ran.outputs)
    (directory / "ran.json").write_text(json.dumps(facts), encoding="utf-8")


def load_ran(directory: Path) -> Ran:
    """What `save_ran` wrote."""
    facts = json.loads((directory / "ran.json").read_text(encoding="utf-8"))
    with np.load(directory / "ran.npz", allow_pickle=False) as loaded:
        arrays = dict(loaded)
    outputs: list[dict[str, Any]] = [{} for _ in range(facts.pop("calls"))]
    for key, array in arrays.items():
        index, _, name = key.partition("/")
        if name:
            outputs[int(index)][name] = array
    facts["costs"] = {phase: tuple(costs) for phase, costs in facts["costs"].items()}
    return Ran(
        **{
            **facts,
            "outputs": tuple(outputs),
            "tokens": arrays.get("tokens"),
            "logits": arrays.get("logits"),
        }
    )
