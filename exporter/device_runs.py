"""Jobs on devices: really run, or from the cache where the same was asked and cannot differ."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from exporter.cache import sha256_file
from exporter.devices.device import Device, Job, Ran
from exporter.devices.registry import open_device
from exporter.devices.smallest import memory_bounds_mib, smallest_memory
from exporter.devices.wire import by_call, of_calls
from exporter.graph.model import OnnxModel
from exporter.models.text import feeds_id
from exporter.progress import Progress
from exporter.stages import Context, read_facts, run_stage, write_facts
from exporter.target import DeviceEntry, Target

# What counts or computes the same whenever it is asked the same may come from the cache.
_REPEATABLE = ("instructions", "guest_s")


def settings_of(entry: DeviceEntry, target: Target) -> dict[str, Any]:
    """What a device is opened with: its entry, and the memory that the profile grants."""
    return {**entry.model_dump(exclude_none=True), "memory_mib": target.memory_mib}


def uncached(entry: DeviceEntry, progress: Progress) -> Callable[[Device, Job], Ran]:
    """Runs that are really made."""
    return lambda device, job: device.run(job, timeout_s=entry.timeout_s, progress=progress)


def cached(context: Context, entry: DeviceEntry) -> Callable[[Device, Job], Ran]:
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


def cached_smallest(context: Context, entry: DeviceEntry, job: Job) -> int | None:
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
    return sha256_file(path) if path.is_file() else ""


def save_ran(ran: Ran, directory: Path) -> None:
    """Write what came back from a device to `directory`."""
    arrays = by_call(ran.outputs)
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
    outputs = of_calls(arrays, facts.pop("calls"))
    facts["costs"] = {phase: tuple(costs) for phase, costs in facts["costs"].items()}
    return Ran(
        **{
            **facts,
            "outputs": outputs,
            "tokens": arrays.get("tokens"),
            "logits": arrays.get("logits"),
        }
    )
