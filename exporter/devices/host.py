"""This machine: its instruction set, its features, how it compares with a target's."""

from __future__ import annotations

import os
import platform
from collections.abc import Collection, Mapping
from typing import Any

from exporter.devices.conditions import cpuinfo, load_1min
from exporter.target import Target

# Names that Linux gives CPU features, and ours (exporter.target.FEATURES).
_FLAGS = {
    "x86-64": {
        "avx2": "avx2",
        "avx512f": "avx512",
        "avx512_vnni": "avx512_vnni",
        "avx_vnni": "avx_vnni",
        "amx_int8": "amx_int8",
        "avx512_bf16": "avx512_bf16",
    },
    "arm64": {
        "asimd": "neon",
        "asimdhp": "fp16",
        "asimddp": "dotprod",
        "i8mm": "i8mm",
        "bf16": "bf16",
        "sve": "sve",
    },
}
_ISAS = {"x86_64": "x86-64", "amd64": "x86-64", "aarch64": "arm64", "arm64": "arm64"}


def isa_of(machine: str) -> str:
    """The instruction set that `uname -m` calls `machine`, in our words, such as `x86-64`."""
    return _ISAS.get(machine.lower(), machine.lower())


def features_of(isa: str, flags: Collection[str]) -> tuple[str, ...]:
    """The CPU features that profiles can name among `flags` of /proc/cpuinfo."""
    names = _FLAGS.get(isa, {})
    found = {ours for linux, ours in names.items() if linux in flags}
    if isa == "arm64":
        found.add("neon")  # part of the architecture
    return tuple(ours for ours in names.values() if ours in found)


def host_isa() -> str:
    """This machine's instruction set in our words."""
    return isa_of(platform.machine())


def host_features() -> tuple[str, ...]:
    """CPU features of this machine that profiles can name; empty where the system does not tell."""
    return features_of(host_isa(), {*cpuinfo("flags").split(), *cpuinfo("Features").split()})


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def host_description() -> dict[str, Any]:
    """What this machine is and how busy it is now: JSON-ready facts for the report."""
    import onnxruntime
    import psutil

    return {
        "isa": host_isa(),
        "cpu": cpuinfo("model name") or platform.processor() or platform.machine(),
        "features": list(host_features()),
        "cores": usable_cores(),
        "memory_mib": round(psutil.virtual_memory().total / (1 << 20)),
        "load_1min": load_1min(),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "onnxruntime": str(onnxruntime.__version__),
    }


def of_class(isa: str, features: Collection[str], target: Target) -> bool:
    """True for a CPU of the target's ISA with all its features: what is counted there counts."""
    return isa == target.isa and set(target.features) <= set(features)


def matches(host: Mapping[str, Any], target: Target) -> bool:
    """True when a described machine has the target's ISA, features and as many cores as threads."""
    return bool(
        of_class(host.get("isa", ""), host.get("features", ()), target)
        and host.get("cores", 0) >= target.threads
    )


def host_matches(target: Target) -> bool:
    """True when this machine is one of the target's class: its time here is its time there."""
    return matches(host_description(), target)
