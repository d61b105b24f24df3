"""Devices emulated process by process: QEMU in user mode runs a Python for another CPU.

Answers are those of the emulated CPU, bit for bit as its instructions give them. Cost is counted in
its instructions and repeats exactly: the guest gets the same environment, addresses and seeds each
time, and one thread. Another user's number, or another path of weights beside a graph, moves what
is allocated: that is some hundred instructions a run. Emulated time is not time and is dropped, as
is memory that holds the emulator's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from exporter.devices.device import Job, Ran, Traits
from exporter.devices.emulator import (
    emulator_command,
    emulator_version,
    plugin_options,
    read_counts,
)
from exporter.devices.process import run_process
from exporter.devices.python_device import PythonDevice
from exporter.devices.wire import ended
from exporter.errors import DeviceCpu, DeviceError
from exporter.progress import Progress

PYTHON = "python"  # name of a link in the job's folder, so that its length is always the same
# A script would be told its whole path, whose length then counts.
_START = "exec(compile(open('runner.py').read(), 'runner.py', 'exec'))"
ENVIRONMENT = {
    "LC_ALL": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # It starts a thread, which writes a database and sends what was run.
    "ORT_DISABLE_TELEMETRY": "1",
}


class QemuUser(PythonDevice):
    """A CPU that QEMU's user mode emulates.

    Attributes:
        guest: QEMU's word for the architecture, such as `aarch64`.
        cpu: QEMU's word for the CPU, such as `cortex-a53`.
        python: the Python of that architecture.
        shown_as: what it is told to be called, which is where it looks for its libraries.
        options: further ones of the emulator.
        environment: of the guest, beside `ENVIRONMENT`.
    """

    link = True

    def __init__(
        self,
        traits: Traits,
        *,
        guest: str,
        cpu: str,
        python: Path,
        shown_as: str,
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._counting = plugin_options()
        self.marks = self._counting is not None
        self.traits = dataclasses.replace(traits, cost="instructions" if self.marks else None)
        self.guest, self.cpu, self.python, self.shown_as = guest, cpu, python, shown_as
        self.options = tuple(options)
        self.environment = {**ENVIRONMENT, **(environment or {})}

    @property
    def identity(self) -> str:
        """Where its parts lie, whose places are named after what they hold."""
        return repr((emulator_command(self.guest), self.cpu, self.python, self._counting))

    def run(self, job: Job, *, timeout_s: float, progress: Progress | None = None) -> Ran:
        """Do `job` there; with one thread where instructions are counted (`facts["threads"]`)."""
        if self.marks and job.threads != 1:
            job = dataclasses.replace(job, threads=1)
        ran = super().run(job, timeout_s=timeout_s, progress=progress)
        return dataclasses.replace(ran, facts={**ran.facts, "threads": job.threads})

    def execute(self, folder: Path, *, timeout_s: float) -> None:
        """Run the runner under the emulator."""
        (folder / PYTHON).symlink_to(self.python)
        command = [
            *emulator_command(self.guest),
            *("-cpu", self.cpu, "-seed", "1", "-0", self.shown_as),
            *self.options,
            *(self._counting or ()),
            *(PYTHON, "-P", "-c", _START, "spec.json", "result.json"),
        ]
        status, stderr = run_process(
            command, folder, self.traits.name, timeout_s=timeout_s, env=self.environment
        )
        if status and not self.has_result(folder):
            # numpy looks before it leaps, and says so where others get SIGILL.
            if "baseline optimizations" in stderr:
                raise DeviceCpu(
                    f"{self.traits.name}: this CPU lacks an instruction that numpy needs."
                )
            raise ended(self.traits.name, status, stderr)

    def finished(self, ran: Ran, result: dict[str, Any], folder: Path) -> Ran:
        """Instructions instead of milliseconds, and nothing that the emulator has a part in."""
        facts = {**ran.facts, "emulator": emulator_version(self.guest), "cpu": self.cpu}
        ran = dataclasses.replace(ran, costs={}, load_cost=None, peak_mib=None, facts=facts)
        if not self.marks:
            return ran
        try:
            counts = read_counts(folder / "counts.txt")
            regions = [
                (phase, {name: counts[end][name] - counts[begin][name] for name in counts[end]})
                for phase, begin, end in result["regions"]
            ]
        except (OSError, ValueError, KeyError) as error:
            raise DeviceError(
                f"{self.traits.name}: the emulator's counts are incomplete ({error!r})."
            ) from error
        return dataclasses.replace(
            ran, **_costs(regions, result["workload"]["decode_tokens"]), load_cost=_load(regions)
        )


Regions = list[tuple[str, dict[str, int]]]


def _load(regions: Regions) -> float | None:
    return next((float(classes["all"]) for phase, classes in regions if phase == "load"), None)


def _costs(regions: Regions, decode_tokens: int) -> dict[str, Any]:
    """`costs` and `classes` of `Ran`; decoding is told for one token."""
    costs: dict[str, tuple[float, ...]] = {}
    classes: dict[str, dict[str, float]] = {}
    for phase in dict.fromkeys(phase for phase, _ in regions if phase != "load"):
        share = decode_tokens if phase == "decode" else 1
        repeats = [counted for name, counted in regions if name == phase]
        costs[phase] = tuple(counted["all"] / share for counted in repeats)
        classes[phase] = {
            name: fmean(counted[name] / share for counted in repeats) for name in repeats[0]
        }
    return {"costs": costs, "classes": classes}
