"""Older x86-64 CPUs, emulated around this machine's own Python and onnxruntime.

Haswell and Skylake have AVX2 and no VNNI: products of unsigned activations and signed weights in
int8 are added in pairs to int16, which saturates. A machine with VNNI never shows that. Nehalem,
like the Atoms of small boxes, has SSE4.2 and no AVX: there they are exact, and slower.

Float32 takes long here: QEMU emulates the fused multiply-adds of AVX2 at 8 million a second.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter.devices.device import Device, DeviceKind, Missing, Traits
from exporter.devices.emulator import install_emulator, missing_emulator
from exporter.devices.host import host_isa
from exporter.devices.qemu_user import QemuUser
from exporter.progress import Progress

# option -> (QEMU's word, features in a profile's words)
CPUS = {
    "haswell": ("Haswell", ("avx2",)),
    "skylake-client": ("Skylake-Client", ("avx2",)),
    "nehalem": ("Nehalem", ()),
}
_FORWARDED = ("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH")


class X86Kind(DeviceKind):
    """`x86-64:haswell` and the like."""

    name = "x86-64"
    summary = "an x86-64 CPU without VNNI under QEMU: answers, instructions"
    options = tuple(CPUS)

    def missing(self, option: str) -> tuple[Missing, ...]:
        """The emulator, and an x86-64 Python to run in it."""
        if host_isa() != "x86-64":
            return (Missing("an x86-64 Python", "exporter on an x86-64 machine"),)
        return missing_emulator("exporter devices install x86-64")

    def open(self, option: str, settings: Mapping[str, Any]) -> Device:
        """This Python on that CPU."""
        option = option or self.options[0]
        return x86_device(f"{self.name}:{option}", *CPUS[option])

    def install(self, progress: Progress) -> None:
        """Fetch the emulator."""
        install_emulator(progress)


def x86_device(name: str, cpu: str, features: tuple[str, ...] = ()) -> QemuUser:
    """The device that runs this Python on QEMU's `cpu`."""
    traits = Traits(name, f"{cpu} (QEMU user mode)", "x86-64", features, emulated=True)
    python = Path(sys.executable)
    return QemuUser(
        traits,
        guest="x86_64",
        cpu=cpu,
        python=python,
        shown_as=str(python),
        # It may find onnxruntime, or its own libraries, by nothing else.
        environment={name: os.environ[name] for name in _FORWARDED if name in os.environ},
    )


KIND = X86Kind()
