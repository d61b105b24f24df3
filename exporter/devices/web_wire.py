"""The folder that travels to onnxruntime-web and back, laid out as JavaScript reads it.

Arrays lie in one file, little endian, each at a multiple of 8 bytes, and JSON tells which is where.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from exporter.devices.device import Job, Ran
from exporter.devices.runner import PAST
from exporter.devices.wire import MODEL, SPEC, WIRE, ran, read_result, sent_outputs
from exporter.errors import DeviceError, DeviceRefused
from exporter.models.examples import Feeds

FEEDS, OUTPUTS = "feeds.bin", "outputs.bin"
_MODEL_FILE, _SESSION_FILE = "model.onnx", "session.json"
_ALIGNED = 8
# A file becomes one array, and JavaScript engines end those at 2 GiB.
_FILE_LIMIT_BYTES = (2 << 30) - 1
# Of the types of onnxruntime-web's tensors, by numpy's names; its type "string" has no kernels
# that a model here would use.
TYPES = (
    *("float32", "float64", "float16", "bool"),
    *("int64", "int32", "int16", "int8"),
    *("uint64", "uint32", "uint16", "uint8"),
)


def pack_web(job: Job, folder: Path, device: str, *, provider: str, threads: int) -> None:
    """Lay out `job` in the empty `folder`: spec.json, feeds.bin and model/, of symbolic links.

    Args:
        provider: the execution provider, "wasm" or "webgpu".
        threads: of the session, whatever the job asks for.

    Raises:
        DeviceRefused: a feed's type or a file's size is beyond onnxruntime-web.
        DeviceError: an input of the model has no feed.
    """
    arrays: dict[str, Any] = {
        f"{index}/{name}": array
        for index, call in enumerate(job.calls)
        for name, array in call.items()
    }
    if job.feeds is not None:
        workload = _workload_feeds(job, job.feeds, device)
        arrays |= {f"workload/{name}": array for name, array in workload.items()}
    files = sorted(p for p in job.model.iterdir() if p.name.startswith(_MODEL_FILE))
    for path in files:
        if path.stat().st_size > _FILE_LIMIT_BYTES:
            raise DeviceRefused(
                f"{device}: a file of the model must be < 2 GiB, {path.name} has "
                f"{path.stat().st_size} bytes; onnxruntime-web reads each into one array. "
                "Quantize the model, or take a smaller one."
            )
    (folder / MODEL).mkdir()
    for path in files:
        (folder / MODEL / path.name).symlink_to(path.resolve())
    spec = {
        "wire": WIRE,
        "job": "run",
        "provider": provider,
        "external": [p.name for p in files if p.name != _MODEL_FILE],
        "disabled_optimizers": _disabled_optimizers(job.model),
        "arrays": _write(folder / FEEDS, arrays, device),
        "calls": len(job.calls),
        "cost": job.feeds is not None,
        "workload": job.workload.model_dump(),
        "threads": threads,
        "repeats": job.repeats,
    }
    (folder / SPEC).write_text(json.dumps(spec), encoding="utf-8")


def unpack_web(folder: Path, job: Job, device: str) -> Ran:
    """What `result.json` and `outputs.bin` in `folder` say.

    Raises:
        DeviceError: the runner failed there, speaks another version, or what came back is not
            what it sent.
    """
    result = read_result(folder, device)
    data = sent_outputs(folder / OUTPUTS, result, device).read_bytes()
    arrays = {}
    for told in result["arrays"]:
        part = data[told["offset"] : told["offset"] + told["bytes"]]
        if told["type"] not in TYPES:
            raise DeviceError(f"{device}: an output of unknown type {told['type']} came back.")
        arrays[told["key"]] = np.frombuffer(part, _little(told["type"])).reshape(told["shape"])
    return ran(job, result, arrays)


def _disabled_optimizers(model: Path) -> list[str]:
    path = model / _SESSION_FILE
    if not path.is_file():
        return []
    return list(json.loads(path.read_text(encoding="utf-8")).get("disabled_optimizers", []))


def _write(path: Path, arrays: Mapping[str, Any], device: str) -> list[dict[str, Any]]:
    told = []
    with path.open("wb") as file:
        for key, array in arrays.items():
            if array.dtype.name not in TYPES:
                raise DeviceRefused(
                    f"{device}: the feed {key} must be of a type that onnxruntime-web takes "
                    f"({', '.join(TYPES)}), got {array.dtype}; feed numbers."
                )
            data = np.ascontiguousarray(array, _little(array.dtype.name)).tobytes()
            place = {"offset": file.tell(), "bytes": len(data)}
            told.append({"key": key, "type": array.dtype.name, "shape": list(array.shape)} | place)
            file.write(data + b"\0" * (-len(data) % _ALIGNED))
    return told


def _little(name: str) -> np.dtype[Any]:
    return np.dtype(name).newbyteorder("<" if sys.byteorder == "big" else "=")


def _workload_feeds(job: Job, feeds: Feeds, device: str) -> Feeds:
    """The workload as the graph takes it: cast, completed and without strangers.

    A language model with a cache gets its prompt, cut or repeated to (batch, prompt_length).
    """
    inputs = _graph_inputs(job.model)
    if inputs is None:
        return feeds
    if any(name.startswith(PAST) for name in inputs):
        shape = (job.workload.batch, job.workload.prompt_length)
        return {"input_ids": np.resize(feeds["input_ids"], shape).astype(np.int64)}
    given = {}
    for name, dtype in inputs.items():
        array = feeds[name] if name in feeds else _made(name, feeds, device)
        given[name] = np.asarray(array, dtype)
    return given


def _made(name: str, feeds: Feeds, device: str) -> Any:
    """An input that follows from the tokens, one unpadded text a row, as runner.py makes it."""
    if "input_ids" in feeds:
        batch, length = feeds["input_ids"].shape
        if name == "attention_mask":
            return np.ones((batch, length))
        if name == "token_type_ids":
            return np.zeros((batch, length))
        if name == "position_ids":
            return np.broadcast_to(np.arange(length), (batch, length))
    raise DeviceError(f"{device}: the model asks for the input '{name}', which has no feed.")


def _graph_inputs(model: Path) -> dict[str, Any] | None:
    """Input -> numpy type; None for what is no ONNX file, which the runtime shall refuse itself."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        graph = onnx.load(str(model / _MODEL_FILE), load_external_data=False).graph
    except DecodeError:
        return None
    held = {weight.name for weight in graph.initializer}
    to_numpy = onnx.helper.tensor_dtype_to_np_dtype
    return {
        value.name: to_numpy(value.type.tensor_type.elem_type)
        for value in graph.input
        if value.name not in held
    }
