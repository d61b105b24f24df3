"""This machine as a device: what it is, and how fast and how large models are on it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporter.errors import DeviceError
from exporter.graph.model import OnnxModel
from exporter.models.examples import Feeds
from exporter.progress import Progress, Silent
from exporter.target import Target, Workload

RUNNER = Path(__file__).resolve().with_name("runner.py")
# Short workloads are repeated beyond the rounds asked for, up to this many times as many.
EXTRA_ROUNDS = 10

Times = dict[str, dict[str, list[float]]]

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


@dataclass(frozen=True)
class Timing:
    """Interleaved times of several models.

    Attributes:
        times_ms: model -> phase -> ms, one a round; the same index is the same round.
        workload: what really ran; a prompt beyond the model's context is cut.
    """

    times_ms: Times
    workload: Workload


@dataclass(frozen=True)
class Memory:
    """Peak resident memory of a process that runs one session.

    Attributes:
        peak_mib: while loading the model and running the workload twice.
        baseline_mib: before loading it, with the interpreter and the runtime; None: unknown.
    """

    peak_mib: float
    baseline_mib: float | None


def time_models(
    models: Mapping[str, OnnxModel],
    feeds: Feeds,
    workload: Workload,
    *,
    threads: int,
    rounds: int,
    seed: int = 0,
    seconds: float = 0.0,
    progress: Progress | None = None,
) -> Timing:
    """Time `models` in one process, each once a round, in an order drawn anew each round.

    Args:
        feeds: one batch of the workload; language models take `input_ids` as the prompt.
        rounds: at least this many; when they take less than `seconds`, up to ten times as many.

    Raises:
        DeviceError: a model does not load or run.
    """
    spec = {
        "job": "time",
        "models": {name: str(model.directory.resolve()) for name, model in models.items()},
        "workload": workload.model_dump(),
        "threads": threads,
        "rounds": rounds,
        "seconds": seconds,
        "max_rounds": EXTRA_ROUNDS * rounds,
        "seed": seed,
    }
    with (progress or Silent()).stage("time", rounds) as bar:
        left = rounds
        with tempfile.TemporaryDirectory(prefix="exporter-") as folder:
            process = _start(spec, feeds, Path(folder))
            try:
                assert process.stdout is not None
                for _ in process.stdout:
                    if left:
                        bar.advance()
                        left -= 1
                result = _finish(process, Path(folder))
            finally:
                _stop(process)
    return Timing(result["times_ms"], Workload(**result["workload"]))


def peak_memory(model: OnnxModel, feeds: Feeds, workload: Workload, *, threads: int) -> Memory:
    """Peak resident memory of a fresh process that loads `model` and runs the workload.

    The interpreter and the runtime are part of it. Where /proc/self/clear_refs works the peak
    starts at loading the model, else it is the process's whole life.

    Raises:
        DeviceError: the model does not load or run.
    """
    spec = {
        "job": "memory",
        "models": {"model": str(model.directory.resolve())},
        "workload": workload.model_dump(),
        "threads": threads,
    }
    with tempfile.TemporaryDirectory(prefix="exporter-") as folder:
        process = _start(spec, feeds, Path(folder))
        try:
            result = _finish(process, Path(folder))
        finally:
            _stop(process)
    return Memory(result["peak_mib"], result["baseline_mib"])


def _start(spec: dict[str, Any], feeds: Feeds, folder: Path) -> subprocess.Popen[bytes]:
    arrays: Mapping[str, Any] = feeds
    np.savez(folder / "feeds.npz", **arrays)
    spec["feeds"] = str(folder / "feeds.npz")
    (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    # -P: the runner's own folder must not shadow modules that onnxruntime imports.
    command = [sys.executable, "-P", str(RUNNER), "spec.json", "result.json"]
    with (folder / "stderr").open("wb") as errors:
        return subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
        )


def _finish(process: subprocess.Popen[bytes], folder: Path) -> dict[str, Any]:
    process.communicate()
    if process.returncode < 0:
        raise DeviceError(
            f"the measuring process was killed by signal {-process.returncode}; "
            "if that is 9, the machine probably ran out of memory."
        )
    if process.returncode:
        lines = (folder / "stderr").read_text(encoding="utf-8", errors="replace").splitlines()
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
        raise DeviceError(f"the model could not be measured: {last[:500]}")
    result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return result


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the process if it still runs, as after Ctrl-C."""
    if process.poll() is None:
        process.kill()
    if process.stdout is not None:
        process.stdout.close()
    process.wait()


def host_isa() -> str:
    """This machine's instruction set in our words, such as `x86-64`."""
    machine = platform.machine().lower()
    return _ISAS.get(machine, machine)


def host_features() -> tuple[str, ...]:
    """CPU features of this machine that profiles can name; empty where the system does not tell."""
    names = _FLAGS.get(host_isa(), {})
    flags = set(_cpuinfo("flags").split()) | set(_cpuinfo("Features").split())
    found = {ours for linux, ours in names.items() if linux in flags}
    if host_isa() == "arm64":
        found.add("neon")  # part of the architecture
    return tuple(ours for ours in names.values() if ours in found)


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def host_description() -> dict[str, Any]:
    """What this machine is and how busy it is now: JSON-ready facts for the report."""
    import onnxruntime
    import psutil

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "isa": host_isa(),
        "cpu": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "features": list(host_features()),
        "cores": usable_cores(),
        "memory_mib": round(psutil.virtual_memory().total / (1 << 20)),
        "load_1min": load,
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "onnxruntime": str(onnxruntime.__version__),
    }


def matches(host: Mapping[str, Any], target: Target) -> bool:
    """True when a described machine has the target's ISA, features and as many cores as threads."""
    return bool(
        host.get("isa") == target.isa
        and set(target.features) <= set(host.get("features", ()))
        and host.get("cores", 0) >= target.threads
    )


def host_matches(target: Target) -> bool:
    """True when this machine is one of the target's class: its time here is its time there."""
    return matches(host_description(), target)


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next(
        (v.strip() for k, _, v in (x.partition(":") for x in lines) if k.strip() == key), ""
    )
