"""64-bit Arm CPUs under QEMU: a Debian userland with the real aarch64 wheels of onnxruntime.

The CPUs differ in what int8 may use: nothing (Cortex-A53, A72), dot products (Cortex-A76,
Neoverse N1), or matrix multiplication (`i8mm`, as Cortex-A710 has it). onnxruntime asks the kernel
for features and /proc/cpuinfo for the core, so that every CPU has a cpuinfo of its own here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.cache import sha256_file
from exporter.devices.debian import fetch, unpack
from exporter.devices.device import Device, DeviceKind, Missing, Traits
from exporter.devices.emulator import emulator_command, install_emulator, missing_emulator
from exporter.devices.qemu_user import ENVIRONMENT, QemuUser
from exporter.devices.store import install, installed
from exporter.devices.wheels import fetch_wheels, missing_pip
from exporter.errors import DeviceError, DeviceMissing
from exporter.progress import Progress

REQUIREMENTS = Path(__file__).resolve().with_name("requirements-arm64.txt")
PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
INSTALL = "exporter devices install arm64"


@dataclass(frozen=True)
class Cpu:
    """A CPU that QEMU emulates.

    Attributes:
        qemu: as its option -cpu takes it.
        part: its number in /proc/cpuinfo, by which onnxruntime knows the core.
        features: in a profile's words.
        flags: the kernel's words for them, beside what all have.
    """

    qemu: str
    title: str
    part: int
    features: tuple[str, ...]
    flags: str = ""


_V82 = " atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
CPUS = {
    "cortex-a53": Cpu("cortex-a53", "Cortex-A53", 0xD03, ("neon",)),
    "cortex-a72": Cpu("cortex-a72", "Cortex-A72", 0xD08, ("neon",)),
    "cortex-a76": Cpu("cortex-a76", "Cortex-A76", 0xD0B, ("neon", "fp16", "dotprod"), _V82),
    "neoverse-n1": Cpu("neoverse-n1", "Neoverse N1", 0xD0C, ("neon", "fp16", "dotprod"), _V82),
    # QEMU 7.2 computes wrong sums with SME.
    "i8mm": Cpu(
        "max,sve=off,sme=off",
        "Arm CPU with matrix multiplication",
        0xD47,
        ("neon", "fp16", "dotprod", "i8mm", "bf16"),
        f"{_V82} i8mm bf16",
    ),
}


class Arm64Kind(DeviceKind):
    """`arm64:cortex-a53` and the like."""

    name = "arm64"
    summary = "a 64-bit Arm CPU under QEMU: answers, instructions"
    options = tuple(CPUS)

    def missing(self, option: str) -> tuple[Missing, ...]:
        """The emulator, and a userland for it."""
        lacks = missing_emulator(INSTALL)
        if installed_root() is None:
            lacks += (Missing("a Debian userland for arm64", INSTALL, installable=True),)
            lacks += missing_pip()
        return lacks

    def open(self, option: str, settings: Mapping[str, Any]) -> Device:
        """A Python on that CPU."""
        return arm64_device(option or self.options[0])

    def install(self, progress: Progress) -> None:
        """Fetch the emulator, a userland, and the wheels."""
        install_emulator(progress)
        stage = progress.stage("fetch the userland for arm64")
        install("arm64", _contents(), _userland, stage)


def installed_root() -> Path | None:
    """The userland: `system/` is a root file system with `site/` in it; one folder for each CPU."""
    return installed("arm64", _contents())


def arm64_device(option: str) -> QemuUser:
    """The device `arm64:option`.

    Raises:
        DeviceMissing: it is not installed.
    """
    root = installed_root()
    if root is None:
        raise DeviceMissing(f"arm64:{option}", "is not installed", remedy=f"run {INSTALL}.")
    cpu = CPUS[option]
    traits = Traits(
        f"arm64:{option}", f"{cpu.title} (QEMU user mode)", "arm64", cpu.features, emulated=True
    )
    return QemuUser(
        traits,
        guest="aarch64",
        cpu=cpu.qemu,
        python=python_of(root / "system"),
        # Paths as the guest sees them under its root, so that none depends on this machine.
        shown_as="/usr/bin/python3",
        options=("-L", str(root / option)),
        environment={"PYTHONHOME": "/usr", "PYTHONPATH": "/site"},
    )


def python_of(system: Path) -> Path:
    """The Python in a root file system of Debian, such as usr/bin/python3.11."""
    return (system / "usr" / "bin" / "python3").resolve()


def _contents() -> dict[str, Any]:
    return {"packages": PACKAGES, "wheels": sha256_file(REQUIREMENTS), "layout": 3}


def _userland(folder: Path) -> None:
    system = folder / "system"
    unpack(fetch(PACKAGES, "arm64", dependencies=True), system)
    shutil.rmtree(system / "usr" / "share")
    # Debian has /lib in /usr since 2024; in packages before that it is a folder.
    if not (system / "lib").exists():
        (system / "lib").symlink_to("usr/lib")
    version = python_of(system).name.removeprefix("python")
    (system / "site").mkdir()
    for wheel in fetch_wheels(REQUIREMENTS, "aarch64", version):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(system / "site")
    for option, cpu in CPUS.items():
        (folder / option / "proc").mkdir(parents=True)
        for name in ("lib", "site", "usr"):
            (folder / option / name).symlink_to(f"../system/{name}")
        (folder / option / "proc" / "cpuinfo").write_text(cpuinfo(cpu), encoding="ascii")
    _compile(folder)


def cpuinfo(cpu: Cpu) -> str:
    """What /proc/cpuinfo says on it. QEMU 7.2 shows this machine's, on which onnxruntime dies."""
    core = (
        "BogoMIPS\t: 50.00\n"
        f"Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32{cpu.flags}\n"
        "CPU implementer\t: 0x41\n"
        "CPU architecture: 8\n"
        "CPU variant\t: 0x0\n"
        f"CPU part\t: {cpu.part:#x}\n"
        "CPU revision\t: 4\n\n"
    )
    return "".join(f"processor\t: {n}\n{core}" for n in range(os.cpu_count() or 1))


def _compile(folder: Path) -> None:
    """Compile what onnxruntime and the runner import, so that every run starts sooner.

    Bytecode holds the path of its source. It gets the guest's: with this machine's, whose length
    differs from others, what is allocated and so what is counted would differ too.
    """
    system = folder / "system"
    home = {"PYTHONHOME": str(system / "usr"), "PYTHONPATH": str(system / "site")}
    code = f"""
import ctypes, json, numpy, numpy.lib.format, onnxruntime, platform, random, zipfile
import py_compile, sys
for module in list(sys.modules.values()):
    path = getattr(module, "__file__", None) or ""
    if path.endswith(".py"):
        py_compile.compile(path, dfile=path.removeprefix({str(system)!r}), doraise=True)
"""
    done = subprocess.run(
        [
            *emulator_command("aarch64"),
            *("-cpu", "cortex-a53", "-L", str(folder / "cortex-a53")),
            *(str(python_of(system)), "-c", code),
        ],
        env={**ENVIRONMENT, **home},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode:
        raise DeviceError(f"arm64: onnxruntime cannot be imported: {done.stderr.strip()[-500:]}")


KIND = Arm64Kind()
