"""An .onnx file that the user gave: whole, valid, and self-contained in its directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from exporter.errors import ModelError


def check_onnx_file(path: Path) -> list[Path]:
    """Prove that a model can be trusted, and list its external data files.

    Raises:
        ModelError: missing, truncated, invalid, without finite weights, or with external data
            that is missing, too short or outside the model's directory.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    if not path.is_file():
        raise ModelError(str(path), "must exist", remedy="check the path.")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise _invalid(path, f"not ONNX, or truncated ({error})") from error
    if not model.graph.node:
        raise _invalid(path, "a graph without nodes")
    tensors = list(_tensors(model.graph))
    external = sorted({_external(path, tensor) for tensor in tensors if _is_external(tensor)})
    try:
        # By path: a model over 2 GB does not fit into one protobuf message.
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise _invalid(path, str(error).strip().splitlines()[0]) from error
    for tensor in tensors:
        _check_finite(path, tensor)
    return external


def _invalid(path: Path, got: str) -> ModelError:
    return ModelError(
        str(path), "must be a valid ONNX model", got=got, remedy="export or copy it again."
    )


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)


def _is_external(tensor: Any) -> bool:
    from onnx import TensorProto

    return bool(tensor.data_location == TensorProto.EXTERNAL)


def _external(path: Path, tensor: Any) -> Path:
    facts = {entry.key: entry.value for entry in tensor.external_data}
    location: str = facts.get("location", "")
    place = f"{path}: {tensor.name}"
    file: Path = path.parent / location
    root = path.parent.resolve()
    if not location or Path(location).is_absolute() or root not in file.resolve().parents:
        raise ModelError(
            place,
            "external data must lie in the model's directory",
            got=location or "no location",
            remedy="save the model with its data beside it.",
        )
    if not file.is_file():
        raise ModelError(
            place, f"external data {location} is missing", remedy="copy it beside the model."
        )
    needed = int(facts.get("offset", 0)) + int(facts.get("length", 0))
    if file.stat().st_size < needed:
        raise ModelError(
            place,
            f"external data {location} is truncated: must have {needed} bytes",
            got=file.stat().st_size,
            remedy="copy it again.",
        )
    return file


def _check_finite(path: Path, tensor: Any) -> None:
    """Refuse NaN (inf is legitimate: attention masks in a graph are often -inf)."""
    from onnx import TensorProto, numpy_helper

    if tensor.data_type not in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16):
        return
    values = numpy_helper.to_array(tensor, base_dir=str(path.parent))
    if bool(np.isnan(values).any()):
        raise ModelError(
            str(path),
            f"weights must be finite, {tensor.name} holds NaN",
            remedy="training diverged: export an earlier checkpoint.",
        )
