"""A whole board under QEMU: its own kernel, its own memory, its own clock.

What no emulated process can have is a limit of memory: here the memory of the machine is that of
the profile, the kernel takes its part of it, and a model that does not fit is killed as it would be
on the board. Its clock counts instructions (`-icount`), and its storage lies in memory rather than
behind a queue, so that nothing waits for this machine: two runs take the same time to the
nanosecond. Those seconds are of a CPU that does one instruction each nanosecond, hence a cost and
no time.
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter.devices.arm64 import CPUS
from exporter.devices.board_files import (
    BoardFiles,
    board_files,
    copy_out,
    install_board,
    make_image,
    missing_board,
)
from exporter.devices.device import Device, DeviceKind, Job, Missing, Ran, Traits
from exporter.devices.devicetree import with_storage
from exporter.devices.process import run_process
from exporter.devices.python_device import PythonDevice
from exporter.devices.wire import OUTPUTS, RESULT, ended
from exporter.errors import (
    DeviceDisk,
    DeviceError,
    DeviceKilled,
    DeviceMissing,
    DeviceTimeout,
    ProfileError,
)
from exporter.progress import Progress

CPU = "cortex-a76"
MEMORY_MIB = 512
LEAST_MEMORY_MIB = 32
DISK_MIB = 64
_MIB = 1 << 20
_RAM_AT = 0x4000_0000  # where the machine `virt` has its memory
# QEMU puts the initrd and the device tree 128 MiB behind the start, where no storage may lie. What
# a smaller board has there is not given to the kernel (mem=).
_LEAST_MAPPED_MIB = 256
# The kernel keeps 64 bytes on each 4 KiB of storage that lies in memory. No board with a real disk
# has that, so that it comes on top.
_STORED_MIB_PER_MIB = 64
_INODES = 1024  # of its disk: a model and the runner are a few files
_KERNEL = (
    # Nothing at random, no memory set apart for devices, and every word of a panic.
    "console=ttyAMA0 earlycon=pl011,0x9000000 quiet panic=-1 nokaslr norandmaps "
    "randomize_kstack_offset=off numa=off cma=0"
)
_TOLD = re.compile(r"^board: (\w+) (.+?)\s*$", re.MULTILINE)


class Board(PythonDevice):
    """A machine `virt` of QEMU with one CPU.

    Attributes:
        memory_mib: all of its memory.
        disk_mib: what is free on its disk beside the model.
        limit_guest_s: its own seconds after which it gives up; None: never.
    """

    limits_memory = True

    def __init__(
        self,
        name: str,
        files: BoardFiles,
        *,
        cpu: str = CPU,
        memory_mib: int = MEMORY_MIB,
        disk_mib: int = DISK_MIB,
        limit_guest_s: int | None = None,
    ) -> None:
        known = CPUS[cpu]
        title = f"board with {known.title} and {memory_mib} MiB (QEMU)"
        self.traits = Traits(name, title, "arm64", known.features, emulated=True, cost="guest_s")
        self.files, self.cpu, self.memory_mib = files, known.qemu, memory_mib
        self.disk_mib, self.limit_guest_s = disk_mib, limit_guest_s
        self._told: dict[str, str] = {}

    @property
    def identity(self) -> str:
        """Where its parts lie, whose places are named after what they hold, and its size."""
        return repr((self.files, self.cpu, self.memory_mib, self.disk_mib, self.limit_guest_s))

    def run(self, job: Job, *, timeout_s: float, progress: Progress | None = None) -> Ran:
        """Do `job` there, with one thread; see `Device.run`."""
        one_thread = dataclasses.replace(job, threads=1)
        try:
            return super().run(one_thread, timeout_s=timeout_s, progress=progress)
        except DeviceKilled as error:
            raise DeviceKilled(
                f"{self.traits.name}: killed at {self.memory_mib} MiB: it needs more memory "
                f"({str(error).removeprefix(self.traits.name).strip(': ')})"
            ) from error

    def execute(self, folder: Path, *, timeout_s: float) -> None:
        """Boot, run the runner, power off."""
        if self.memory_mib < LEAST_MEMORY_MIB:  # its kernel would stop before it can say so
            raise DeviceKilled(f"{self.traits.name}: the kernel needs {LEAST_MEMORY_MIB} MiB")
        with tempfile.TemporaryDirectory(prefix="exporter-board-") as temporary:
            disk = Path(temporary) / "job.ext4"
            disk_mib = make_image(self.files, disk, folder, free_mib=self.disk_mib, inodes=_INODES)
            machine = self._machine(disk, disk_mib)
            tree = Path(temporary) / "machine.dtb"
            self._describe(machine, tree, disk_mib, timeout_s)
            command = [*machine, "-dtb", str(tree), "-kernel", str(self.files.kernel)]
            command += ["-initrd", str(self.files.initrd), "-append", self._arguments(disk_mib)]
            status, said = run_process(
                command, Path(temporary), self.traits.name, timeout_s=timeout_s, env={}
            )
            self._told = dict(_TOLD.findall(said))
            exit_code = self._exit_code(status, said)
            for name in (RESULT, OUTPUTS):
                copy_out(self.files, disk, name, folder / name)
        if exit_code and not self.has_result(folder):
            raise ended(self.traits.name, exit_code, said.partition("board: boot_guest_s")[2])

    def finished(self, ran: Ran, result: dict[str, Any], folder: Path) -> Ran:
        """Seconds of its clock instead of milliseconds."""
        told = self._told
        facts = {
            **ran.facts,
            "cpu": self.cpu,
            "threads": 1,
            "memory_mib": self.memory_mib,
            "memory_seen_mib": int(told["memory_seen_kib"]) / 1024,
            "kernel": told["kernel"],
            "emulator": self.files.about["emulator"],
            "boot_guest_s": float(told["boot_guest_s"]),
            "guest_s": float(told["guest_s"]),
        }
        return dataclasses.replace(
            ran,
            costs={phase: tuple(map(_seconds, ms)) for phase, ms in ran.costs.items()},
            load_cost=None if ran.load_cost is None else _seconds(ran.load_cost),
            facts=facts,
        )

    def _exit_code(self, status: int, said: str) -> int:
        """The runner's exit code as the board told it.

        Raises:
            DeviceError: there is none; the class says why.
        """
        name, told = self.traits.name, self._told
        if "over" in told:
            raise DeviceTimeout(
                f"{name}: not finished after {told['over']} s of its clock: it is busy reading "
                f"again what {self.memory_mib} MiB of memory could not keep; give it more."
            )
        if "short" in told:
            raise DeviceKilled(f"{name}: it did nothing but read what memory could not keep")
        if "fail" in told:
            raise DeviceError(f"{name}: the board did not start properly ({told['fail']}).")
        if "exit" in told:
            return int(told["exit"])
        panic = re.search(r"Kernel panic - not syncing: (.*)", said)
        if panic and ("memory" in said or "boot_guest_s" not in told):
            # Before its script runs, nothing but memory differs from a board that starts.
            raise DeviceKilled(f"{name}: the kernel gave up: {panic[1].strip()}")
        if panic:
            raise DeviceError(f"{name}: the kernel gave up: {panic[1].strip()}.")
        if "No space left on device" in said or status in (-7, 135):
            raise DeviceDisk(f"{name}: no room for its disk in {tempfile.gettempdir()}.")
        last = (said.strip().splitlines() or ["it said nothing"])[-1]
        raise DeviceError(f"{name}: the emulator ended with {status} and no answer: {last[:300]}.")

    def _machine(self, disk: Path, disk_mib: int) -> list[str]:
        """The emulator's command for the machine without its software.

        The memory of the machine is in three parts: the board's, the system's image, which is
        copied when written, and the disk's, which is the file itself.
        """
        system_mib = self._system_mib()
        sizes = (self._mapped_mib(disk_mib), system_mib, disk_mib)
        parts = (
            "memory-backend-ram",
            f"memory-backend-file,share=off,mem-path={_escaped(self.files.system)}",
            f"memory-backend-file,share=on,mem-path={_escaped(disk)}",
        )
        command = [*self.files.command("qemu-system-aarch64"), "-M", "virt", "-cpu", self.cpu]
        command += ["-accel", "tcg", "-smp", "1", "-m", f"{sum(sizes)}M", "-seed", "1"]
        for number, (part, size) in enumerate(zip(parts, sizes, strict=True)):
            command += ["-object", f"{part},id=part{number},size={size}M"]
            command += ["-numa", f"node,memdev=part{number}" + (",cpus=0" if number == 0 else "")]
        command += ["-icount", "shift=0,sleep=off", "-rtc", "base=2020-01-01,clock=vm"]
        command += ["-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"]
        return command

    def _describe(self, machine: list[str], tree: Path, disk_mib: int, timeout_s: float) -> None:
        """Write the machine's device tree with its storage to `tree`."""
        at = machine.index("virt")
        # A comma in a file's name is written twice.
        dumping = [*machine[:at], f"virt,dumpdtb={_escaped(tree)}", *machine[at + 1 :]]
        status, said = run_process(
            dumping, tree.parent, self.traits.name, timeout_s=timeout_s, env={}
        )
        if not tree.is_file():
            raise DeviceError(f"{self.traits.name}: QEMU ended with {status}: {said[-300:]}")
        system_mib = self._system_mib()
        system_at = _RAM_AT + self._mapped_mib(disk_mib) * _MIB
        regions = [
            (system_at, system_mib * _MIB),
            (system_at + system_mib * _MIB, disk_mib * _MIB),
        ]
        try:
            tree.write_bytes(with_storage(tree.read_bytes(), regions))
        except ValueError as error:
            raise DeviceError(f"{self.traits.name}: QEMU described {error}.") from error

    def _arguments(self, disk_mib: int) -> str:
        limit = "" if self.limit_guest_s is None else f" board.limit_s={self.limit_guest_s}"
        return f"{_KERNEL} mem={self._given_mib(disk_mib)}M{limit}"

    def _system_mib(self) -> int:
        return self.files.system.stat().st_size // _MIB

    def _given_mib(self, disk_mib: int) -> int:
        """What the kernel gets: the board's memory, and what storage in memory costs it."""
        return self.memory_mib + -(-(self._system_mib() + disk_mib) // _STORED_MIB_PER_MIB)

    def _mapped_mib(self, disk_mib: int) -> int:
        """Where storage begins; the kernel likes it at a multiple of 128 MiB."""
        return max(_LEAST_MAPPED_MIB, -(-self._given_mib(disk_mib) // 128) * 128)


class BoardKind(DeviceKind):
    """`board:arm64`."""

    name = "board"
    summary = "a whole 64-bit Arm board under QEMU: answers, a real limit of memory, its own clock"
    options = ("arm64",)

    def missing(self, option: str) -> tuple[Missing, ...]:
        """Its emulator, kernel and system."""
        return missing_board()

    def open(self, option: str, settings: Mapping[str, Any]) -> Device:
        """A board with `memory_mib`, `cpu` (of `arm64`) and `disk_mib` of the profile's entry."""
        name = f"{self.name}:{option or self.options[0]}"
        files = board_files()
        if files is None:
            raise DeviceMissing(
                name, "is not installed", remedy=f"run exporter devices install {self.name}."
            )
        cpu = settings.get("cpu", CPU)
        if cpu not in CPUS:
            raise ProfileError(
                name, "cpu must be one that is emulated", got=cpu, remedy=f"use {', '.join(CPUS)}."
            )
        sizes = {"memory_mib": MEMORY_MIB, "disk_mib": DISK_MIB, "limit_guest_s": None}
        sizes |= {key: settings[key] for key in sizes if settings.get(key) is not None}
        for key, value in sizes.items():
            if value is not None and (type(value) is not int or value < 1):
                raise ProfileError(
                    name, f"{key} must be a whole number ≥ 1", got=value, remedy=f"correct {key}."
                )
        return Board(name, files, cpu=cpu, **sizes)  # type: ignore[arg-type]

    def install(self, progress: Progress) -> None:
        """Fetch and make all of it."""
        install_board(progress)


def _seconds(ms: float) -> float:
    """From milliseconds, to the nanosecond that the clock has."""
    return round(ms / 1000, 9)


def _escaped(path: Path) -> str:
    return str(path).replace(",", ",,")


KIND = BoardKind()
