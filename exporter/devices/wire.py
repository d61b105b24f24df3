"""The folder that travels to a device and back: a job for runner.py, and what came of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exporter.cache import sha256_file
from exporter.devices.device import Job, Ran
from exporter.errors import (
    DeviceCpu,
    DeviceDisk,
    DeviceError,
    DeviceKilled,
    DeviceRefused,
)
from exporter.models.examples import Feeds, Outputs
from exporter.target import Workload

WIRE = 1
RUNNER = Path(__file__).resolve().with_name("runner.py")
SPEC, FEEDS, RESULT, OUTPUTS, MODEL = (
    "spec.json",
    "feeds.npz",
    "result.json",
    "outputs.npz",
    "model",
)
# What a model directory holds beside weights that its session needs. A job's workload fits its
# model; a timing's is cut there to the context that config.json names.
_WITH_MODEL = ("session.json",)
_TIMED = (*_WITH_MODEL, "config.json")
_KILLED, _ILLEGAL = 9, 4
_BY_REASON: dict[str, type[DeviceError]] = {
    "disk": DeviceDisk,
    "memory": DeviceKilled,
    "refused": DeviceRefused,
}


def pack(job: Job, folder: Path, *, marks: bool = False, link: bool = False) -> None:
    """Lay out `job` in the empty `folder`: runner.py, spec.json, feeds.npz and model/.

    `python -P runner.py spec.json result.json`, run in it, adds result.json and outputs.npz.

    Args:
        marks: the runner makes the system calls that the counting plugin waits for.
        link: weights are symbolic links, for devices that see this machine's files.
    """
    shutil.copyfile(RUNNER, folder / RUNNER.name)
    arrays = by_call(job.calls)
    arrays |= {f"workload/{name}": array for name, array in (job.feeds or {}).items()}
    np.savez(folder / FEEDS, **arrays)
    spec = {
        "wire": WIRE,
        "job": "run",
        "models": {"model": MODEL},
        "feeds": FEEDS,
        "calls": len(job.calls),
        "workload": job.workload.model_dump(),
        "cost": job.feeds is not None,
        "repeats": job.repeats,
        "threads": job.threads,
        "marks": marks,
        "outputs": OUTPUTS,
    }
    (folder / SPEC).write_text(json.dumps(spec), encoding="utf-8")
    _lay_model(job.model, folder / MODEL, _WITH_MODEL, link=link)


def pack_timing(
    models: Mapping[str, Path],
    feeds: Feeds,
    workload: Workload,
    folder: Path,
    *,
    threads: int,
    rounds: int,
    openings: int = 1,
    seed: int = 0,
    link: bool = False,
) -> None:
    """Lay out a paired, interleaved timing of `models` in the empty `folder`, as `pack` does a job.

    It adds result.json only, which `unpack_timing` reads.

    Args:
        models: name -> directory with model.onnx.
        feeds: one batch of `workload`.
        rounds, openings, seed: see `exporter.devices.timing.time_models`.
    """
    shutil.copyfile(RUNNER, folder / RUNNER.name)
    arrays: Mapping[str, Any] = feeds
    np.savez(folder / FEEDS, **arrays)
    places = {name: f"{MODEL}/{index}" for index, name in enumerate(models)}
    spec = {
        "wire": WIRE,
        "job": "time",
        "models": places,
        "feeds": FEEDS,
        "workload": workload.model_dump(),
        "threads": threads,
        "rounds": rounds,
        "openings": openings,
        "limit_seconds": None,
        "seed": seed,
    }
    (folder / SPEC).write_text(json.dumps(spec), encoding="utf-8")
    for name, directory in models.items():
        _lay_model(directory, folder / places[name], _TIMED, link=link)


def _lay_model(model: Path, folder: Path, companions: Sequence[str], *, link: bool) -> None:
    folder.mkdir(parents=True)
    for path in sorted(model.iterdir()):
        if path.name.startswith("model.onnx") or path.name in companions:
            if link:
                (folder / path.name).symlink_to(path.resolve())
            else:
                shutil.copyfile(path, folder / path.name)


def unpack(folder: Path, job: Job, device: str) -> tuple[Ran, dict[str, Any]]:
    """What `result.json` and `outputs.npz` in `folder` say, and the raw result.

    Times are taken as milliseconds; a device whose time is not time replaces them.

    Raises:
        DeviceError: the runner failed there, speaks another version, or what came back is not
            what it sent.
    """
    result = read_result(folder, device)
    with np.load(sent_outputs(folder / OUTPUTS, result, device), allow_pickle=False) as loaded:
        arrays = dict(loaded)
    return ran(job, result, arrays), result


def read_result(folder: Path, device: str) -> dict[str, Any]:
    """The result that a runner left in `folder`.

    Raises:
        DeviceError: there is none, it is of another version, or it tells of an error.
    """
    try:
        result: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DeviceError(f"{device}: no readable result came back ({error}).") from error
    if result.get("wire") != WIRE:
        raise DeviceError(
            f"{device}: the result is of wire version {result.get('wire')}, not {WIRE}."
        )
    if "error" in result:
        raise told(device, result["error"])
    return result


def sent_outputs(path: Path, result: Mapping[str, Any], device: str) -> Path:
    """`path`, which has the hash that `result` tells of the outputs.

    Raises:
        DeviceError: it has not.
    """
    if not path.is_file() or sha256_file(path) != result.get("outputs_sha256"):
        raise DeviceError(f"{device}: the outputs that came back are not those that were sent.")
    return path


def by_call(calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The arrays of each call in one mapping, under "I/NAME"."""
    return {f"{i}/{name}": array for i, call in enumerate(calls) for name, array in call.items()}


def of_calls(arrays: Mapping[str, Any], count: int) -> tuple[Outputs, ...]:
    """What `by_call` joined, apart again; whatever belongs to none of `count` calls is left out."""
    calls: list[Outputs] = [{} for _ in range(count)]
    for key, array in arrays.items():
        index, _, name = key.partition("/")
        if index.isdigit() and int(index) < count:
            calls[int(index)][name] = array
    return tuple(calls)


def ran(job: Job, result: Mapping[str, Any], arrays: Mapping[str, Any]) -> Ran:
    """A result and its arrays, "I/NAME", "tokens" and "logits", as what came back from `job`."""
    return Ran(
        outputs=of_calls(arrays, len(job.calls)),
        tokens=arrays.get("tokens"),
        logits=arrays.get("logits"),
        costs={phase: tuple(ms) for phase, ms in result["times_ms"].items()},
        load_cost=result["load_ms"],
        heap_mib=result.get("heap_mib"),
        peak_mib=result.get("peak_mib"),
        runtime=str(result.get("runtime", "")),
        facts=dict(result.get("facts", {})),
    )


def unpack_timing(folder: Path, device: str) -> dict[str, dict[str, list[float]]]:
    """Model -> phase -> ms of each round, as the runner told in `folder`; one index, one round.

    Raises:
        DeviceError: as `unpack`.
    """
    times: dict[str, dict[str, list[float]]] = read_result(folder, device)["times_ms"]
    return times


def told(device: str, error: Mapping[str, Any]) -> DeviceError:
    """The error that a runner wrote down, `{"reason": ..., "message": ...}`."""
    kind = _BY_REASON.get(str(error.get("reason")), DeviceError)
    return kind(f"{device}: {str(error.get('message', 'it failed'))[:500]}")


def ended(device: str, status: int, stderr: str = "") -> DeviceError:
    """The error that the exit status of a runner that left no result means.

    Args:
        status: as a shell tells it; 128 + N, or -N, for signal N.
        stderr: what it printed; the last line is quoted.
    """
    signal = -status if status < 0 else status - 128 if status > 128 else 0
    if signal == _KILLED:
        return DeviceKilled(
            f"{device}: the process was killed (137): there was not enough memory for the model."
        )
    if signal == _ILLEGAL:
        return DeviceCpu(
            f"{device}: illegal instruction: this CPU lacks one that onnxruntime or numpy needs."
        )
    last = next((line.strip() for line in reversed(stderr.splitlines()) if line.strip()), "")
    if "No space left on device" in stderr:
        return DeviceDisk(f"{device}: its disk is full.")
    end = f"ended by signal {signal}" if signal else f"ended with exit code {status}"
    return DeviceError(f"{device}: the runner {end}: {last[:500] or 'it said nothing'}.")
