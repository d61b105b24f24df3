"""What a workload costs on a device, in the unit that is true there, and the reading it is in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from exporter.devices.device import Device, Job, Ran
from exporter.devices.host import host_isa, of_class
from exporter.devices.python_device import PythonDevice
from exporter.errors import DeviceCpu, DeviceError, DeviceKilled, DeviceRefused
from exporter.graph.model import OnnxModel
from exporter.judge.latency import phase_latencies, rounds_for
from exporter.judge.reading import Cost, Reading, host_of
from exporter.models.examples import Feeds
from exporter.target import DeviceEntry, Target, Workload

# How a device runs a job; a cache may stand in front of it.
Runs = Callable[[Device, Job], Ran]


def tells_cost(device: Device, target: Target) -> bool:
    """True when a device's cost says more than this machine's time does, or is judged.

    An emulated CPU of this machine's own kind is slow and tells little that time here does not.
    """
    traits = device.traits
    if traits.cost != "instructions" or traits.isa != host_isa():
        return True
    judged = target.budgets.instruction_ratio is not None
    return judged and of_class(traits.isa, traits.features, target)


def costs_only(
    device: Device,
    entry: DeviceEntry,
    reference: OnnxModel,
    candidate: OnnxModel,
    feeds: Feeds,
    workload: Workload,
    run: Runs,
) -> Reading:
    """What both models cost on `device`; nothing of their answers."""
    found = reading_of(device, entry, 0)
    costs: list[Cost] = []
    for model in (candidate, reference):
        try:
            ran = run(device, Job(model.directory, (), feeds, workload, repeats=1))
        except DeviceError as error:
            if model is candidate:
                return failed(found, error)
            return replace(found, candidate=costs[0], float_reason=str(error))
        costs.append(cost_of(ran, workload))
    return replace(found, candidate=costs[0], reference=costs[1], runtime=ran.runtime)


def cost_of(ran: Ran, workload: Workload) -> Cost:
    """A device's repeats as mean costs of the phases and of the whole workload."""
    phases = {phase: float(np.mean(told)) for phase, told in ran.costs.items() if told}
    answer = phases.get("run")
    classes = dict(ran.classes.get("run", {}))
    if "prefill" in phases and "decode" in phases:
        answer = phases["prefill"] + workload.decode_tokens * phases["decode"]
        first, later = ran.classes.get("prefill", {}), ran.classes.get("decode", {})
        classes = {k: first[k] + workload.decode_tokens * later.get(k, 0.0) for k in first}
    spreads = [max(told) / min(told) - 1 for told in ran.costs.values() if told and min(told) > 0]
    return Cost(
        answer,
        phases,
        max(spreads) if spreads else None,
        classes,
        ran.load_cost,
        ran.heap_mib,
        ran.peak_mib,
    )


def reading_of(device: Device, entry: DeviceEntry, examples: int) -> Reading:
    """The reading of a device that is about to be asked."""
    traits = device.traits
    return Reading(
        entry.name,
        entry.required,
        "ran",
        title=traits.title,
        isa=traits.isa,
        emulated=traits.emulated,
        unit=traits.cost,
        features=traits.features,
        examples=examples,
    )


def failed(found: Reading, error: DeviceError) -> Reading:
    """A model that does not run there, told apart from a device that did not come to an end."""
    ours = isinstance(error, DeviceRefused | DeviceKilled | DeviceCpu)
    return replace(found, status="failed" if ours else "unfinished", reason=str(error), examples=0)


def timed(
    found: Reading,
    device: PythonDevice,
    models: dict[str, Path],
    feeds: Feeds,
    workload: Workload,
    target: Target,
    timeout_s: float,
) -> Reading:
    """The reading with times of both models, taken in turns on the device itself.

    Raises:
        DeviceError: it came to no end.
    """
    times = device.time(
        models,
        feeds,
        workload,
        threads=target.threads,
        rounds=rounds_for(target, host_of(found, target)),
        openings=1,
        timeout_s=timeout_s,
        seed=target.recipe.seed,
    )
    confidence = target.evidence.confidence
    answer, *phases = phase_latencies(times["reference"], times["candidate"], workload, confidence)
    sides = {}
    for side in ("reference", "candidate"):
        each = {p.phase: getattr(p, f"{side}_p50_ms") for p in phases or [answer]}
        if not phases:
            each = {"run": each["answer"]}
        whole = getattr(answer, f"{side}_p50_ms")
        sides[side] = replace(getattr(found, side), answer=whole, phases=each, spread=None)
    return replace(
        found,
        **sides,
        times_ms=times,
        decode_tokens=workload.decode_tokens,
        ratio_low=answer.ratio_low,
        ratio_high=answer.ratio_high,
    )


def missing(entry: DeviceEntry, why: str) -> Reading:
    """The reading of a device that is not usable here."""
    return Reading(entry.name, entry.required, "missing", reason=why)
