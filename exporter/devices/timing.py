"""Time and memory of models on this machine, each measured in a process of its own."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporter.devices.conditions import Conditions, busyness
from exporter.errors import DeviceError
from exporter.graph.model import OnnxModel
from exporter.models.examples import Feeds
from exporter.progress import Progress, Silent
from exporter.target import Workload

RUNNER = Path(__file__).resolve().with_name("runner.py")

Times = dict[str, dict[str, list[float]]]


@dataclass(frozen=True)
class Timing:
    """Interleaved times of several models.

    Attributes:
        times_ms: model -> phase -> ms, one a round; the same index is the same round.
        workload: what really ran; a prompt beyond the model's context is cut.
        blocks: rounds of each opening of the models, in order.
        conditions: how busy the machine was meanwhile.
    """

    times_ms: Times
    workload: Workload
    blocks: tuple[int, ...]
    conditions: Conditions


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
    openings: int = 1,
    limit_seconds: float | None = None,
    go_on: Callable[[Timing], int] | None = None,
    progress: Progress | None = None,
) -> Timing:
    """Time `models` in one process, each once a round, in an order drawn anew each round.

    Args:
        feeds: one batch of the workload; language models take `input_ids` as the prompt.
        rounds: at least this many.
        openings: times that the models are opened anew on the way to each goal.
        limit_seconds: rounds beyond `rounds` stop after this long.
        go_on: gets the timing so far whenever a goal is reached and returns the rounds wanted in
            all; no more than there are ends it. None: `rounds` are all.

    Raises:
        DeviceError: a model does not load or run.
    """
    spec = {
        "job": "time",
        "models": {name: str(model.directory.resolve()) for name, model in models.items()},
        "workload": workload.model_dump(),
        "threads": threads,
        "rounds": rounds,
        "openings": openings,
        "limit_seconds": limit_seconds,
        "seed": seed,
    }
    before = busyness()

    def timing(result: Mapping[str, Any]) -> Timing:
        ran = Workload(**result["workload"])
        seen = Conditions.between(before, busyness())
        return Timing(result["times_ms"], ran, tuple(result["blocks"]), seen)

    with (progress or Silent()).stage("time", rounds) as bar:
        left = rounds
        with tempfile.TemporaryDirectory(prefix="exporter-") as folder:
            process = _start(spec, feeds, Path(folder), asks=go_on is not None)
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    if line.startswith(b"{") and go_on is not None:
                        so_far = timing(json.loads(line))
                        _answer(process, f"more {go_on(so_far)}\n")
                    elif left and line.startswith(b"round"):
                        bar.advance()
                        left -= 1
                result = _finish(process, Path(folder))
            finally:
                _stop(process)
    return timing(result)


def _answer(process: subprocess.Popen[bytes], line: str) -> None:
    """Tell the runner; one that is gone says why by its exit status."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(line.encode())
        process.stdin.flush()


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


def _start(
    spec: dict[str, Any], feeds: Feeds, folder: Path, *, asks: bool = False
) -> subprocess.Popen[bytes]:
    arrays: Mapping[str, Any] = feeds
    np.savez(folder / "feeds.npz", **arrays)
    spec["feeds"] = str(folder / "feeds.npz")
    (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    # -P: the runner's own folder must not shadow modules that onnxruntime imports.
    command = [sys.executable, "-P", str(RUNNER), "spec.json", "result.json"]
    with (folder / "stderr").open("wb") as errors:
        return subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.PIPE if asks else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
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
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.close()
    process.wait()
