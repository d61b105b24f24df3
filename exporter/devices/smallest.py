"""The smallest memory of a board on which a model runs, by few boots."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from exporter.devices.device import Device, Job
from exporter.errors import DeviceKilled, DeviceTimeout
from exporter.progress import Progress, Silent

# What a kernel and a Python take without a model: with less, not even the smallest one runs.
_SYSTEM_MIB = 64
# A board that reads its programs again and again is not one on which the model runs.
_SLOWER = 2.0
# The kernel takes this much beside what the process had at its peak: where the search begins.
_BESIDE_PEAK_MIB = 24

DeviceFactory = Callable[[Mapping[str, Any]], Device]


def memory_bounds_mib(model: Path) -> tuple[int, int]:
    """Memory (MiB) that is surely too little, and that is surely enough, for `model`'s directory.

    The weights are there at least once, and while a session opens up to three times: as the file,
    as the graph, and packed for the kernels.
    """
    weights = sum(p.stat().st_size for p in model.glob("model.onnx*")) / (1 << 20)
    return _SYSTEM_MIB, math.ceil(256 + 4 * weights)


def survives(device: Device, job: Job, *, timeout_s: float) -> bool:
    """True when `job` runs on `device`, False when it is killed or hardly gets on.

    Raises:
        DeviceError: it failed for another reason than memory.
    """
    try:
        device.run(job, timeout_s=timeout_s)
    except (DeviceKilled, DeviceTimeout):
        return False
    return True


def smallest_memory(
    device_factory: DeviceFactory,
    job: Job,
    low_mib: int,
    high_mib: int,
    *,
    step_mib: int = 16,
    timeout_s: float,
    progress: Progress | None = None,
) -> int | None:
    """The smallest memory (MiB, to `step_mib`) on which `job` runs; None where `high_mib` is not.

    Each boot runs the workload once. One that takes twice the device's own time of the first boot
    counts as not running: it is short of memory, and reads again what it dropped.

    Args:
        device_factory: makes a device from settings `memory_mib` and `limit_guest_s`, such as
            `partial(open_device, "board:arm64")`.
        low_mib: it is not looked for below.
        high_mib: the first boot's.
        timeout_s: of each boot, real time.

    Raises:
        DeviceError: a boot failed for another reason than memory, or the first was not finished
            in time.
    """
    once = dataclasses.replace(job, repeats=1, calls=job.calls[:1] if job.feeds is None else ())
    bar_name = f"smallest memory up to {high_mib} MiB"
    with (progress or Silent()).stage(bar_name) as bar:
        try:
            ample = device_factory({"memory_mib": high_mib}).run(once, timeout_s=timeout_s)
        except DeviceKilled:
            return None
        bar.advance()
        limit = math.ceil(_SLOWER * float(ample.facts.get("guest_s", timeout_s)))
        # In steps above `low_mib`; `fails` does not run, or was not asked for, and `runs` does.
        fails, runs = -1, math.ceil((high_mib - low_mib) / step_mib)
        guess = round(((ample.peak_mib or 0) + _BESIDE_PEAK_MIB - low_mib) / step_mib)
        stride, following = 1, 1
        while runs - fails > 1:
            # The guess is good as a rule: go from it in growing strides, and halve what they left.
            middle = (fails + runs) // 2
            probe = guess if fails < guess < runs else middle
            settings = {"memory_mib": low_mib + probe * step_mib, "limit_guest_s": limit}
            if survives(device_factory(settings), once, timeout_s=timeout_s):
                runs, guess = probe, probe - stride
            else:
                fails, guess = probe, probe + stride
            stride, following = following, stride + following
            bar.advance()
        return min(low_mib + runs * step_mib, high_mib)
