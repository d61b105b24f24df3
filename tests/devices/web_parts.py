"""What the tests of onnxruntime-web share: its installation, and graphs that try its edges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter.devices.registry import kind_of
from exporter.errors import DeviceError
from exporter.graph.model import OnnxModel
from exporter.progress import Silent

# Every type of feed that onnxruntime-web has kernels for, with values at its ends.
TYPES: dict[str, Any] = {
    "float32": [0.1, -np.inf, 3e38],
    "float64": [0.1, np.inf, 1e300],
    "float16": [0.1, -65504.0, 6e-8],
    "int64": [-(2**63), 2**63 - 1, 2**53 + 1],
    "int32": [-(2**31), 2**31 - 1, 0],
    "int8": [-128, 127, 0],
    "uint8": [0, 255, 7],
    "bool": [True, False, True],
}


def usable(name: str) -> None:
    """Install what `exporter devices install` would; skip with the command for what is left."""
    kind, option = kind_of(name)
    if any(lack.installable for lack in kind.missing(option)):
        try:
            kind.install(Silent())
        except DeviceError as error:
            pytest.skip(f"{name}: {error}")
    for lack in kind.missing(option):
        pytest.skip(f"{name} needs {lack.what}: {lack.remedy}")


def save(
    directory: Path,
    nodes: list,
    inputs: dict,
    outputs: dict,
    weights: dict | None = None,
    **options,
) -> OnnxModel:
    """A graph of `nodes`; inputs and outputs are name -> (element type, shape)."""
    directory.mkdir(parents=True)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "graph",
        [value(name, *kind) for name, kind in inputs.items()],
        [value(name, *kind) for name, kind in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save(model, directory / "model.onnx", **options)
    return OnnxModel(directory)


def echoes(directory: Path) -> OnnxModel:
    """Input `int64` comes back as the output `int64_back`, and so on for all TYPES."""
    kinds = {name: helper.np_dtype_to_tensor_dtype(np.dtype(name)) for name in TYPES}
    return save(
        directory,
        [helper.make_node("Identity", [name], [f"{name}_back"]) for name in TYPES],
        {name: (kind, ["batch", 3]) for name, kind in kinds.items()},
        {f"{name}_back": (kind, ["batch", 3]) for name, kind in kinds.items()},
    )


def echo_feeds(rows: int) -> dict[str, Any]:
    """Feeds for `echoes`."""
    return {name: np.tile(np.array(v, name), (rows, 1)) for name, v in TYPES.items()}


def external(directory: Path, width: int = 64) -> OnnxModel:
    """x -> x·w, with w in model.onnx.data."""
    weight = np.random.default_rng(0).normal(size=(width, width)).astype(np.float32)
    model = save(
        directory,
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"x": (TensorProto.FLOAT, ["batch", width])},
        {"y": (TensorProto.FLOAT, ["batch", width])},
        {"w": weight},
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=0,
    )
    assert (directory / "model.onnx.data").stat().st_size == 4 * width * width
    return model


def four_bits(directory: Path) -> OnnxModel:
    """x (batch, 64) -> y (batch, 16) by MatMulNBits with blocks of 32."""
    rng = np.random.default_rng(0)
    return save(
        directory,
        [
            helper.make_node(
                "MatMulNBits",
                ["x", "w", "scales"],
                ["y"],
                domain="com.microsoft",
                K=64,
                N=16,
                bits=4,
                block_size=32,
            )
        ],
        {"x": (TensorProto.FLOAT, ["batch", 64])},
        {"y": (TensorProto.FLOAT, ["batch", 16])},
        {
            "w": rng.integers(0, 256, (16, 2, 16)).astype(np.uint8),
            "scales": rng.normal(size=32).astype(np.float32),
        },
    )


def grouped_attention(directory: Path) -> OnnxModel:
    """One GroupQueryAttention of 2 query heads on 1 of keys, each 8 wide."""
    names = ["q", "k", "v", "past_k", "past_v", "seen", "total"]
    past = (TensorProto.FLOAT, ["batch", 1, "past", 8])
    return save(
        directory,
        [
            helper.make_node(
                "GroupQueryAttention",
                names,
                ["y", "present.k", "present.v"],
                domain="com.microsoft",
                num_heads=2,
                kv_num_heads=1,
            )
        ],
        {
            "q": (TensorProto.FLOAT, ["batch", "new", 16]),
            "k": (TensorProto.FLOAT, ["batch", "new", 8]),
            "v": (TensorProto.FLOAT, ["batch", "new", 8]),
            "past_k": past,
            "past_v": past,
            "seen": (TensorProto.INT32, ["batch"]),
            "total": (TensorProto.INT32, [1]),
        },
        {
            "y": (TensorProto.FLOAT, ["batch", "new", 16]),
            "present.k": past,
            "present.v": past,
        },
    )


def attention_feeds() -> dict[str, Any]:
    """Feeds for `grouped_attention`: 5 tokens seen, one new."""
    rng = np.random.default_rng(1)
    shapes = {"q": (1, 1, 16), "k": (1, 1, 8), "v": (1, 1, 8)}
    shapes |= {"past_k": (1, 1, 5, 8), "past_v": (1, 1, 5, 8)}
    feeds: dict[str, Any] = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    return feeds | {"seen": np.array([5], np.int32), "total": np.array([6], np.int32)}


def stranger(directory: Path) -> OnnxModel:
    """A graph with the operator Frobnicate, which nobody has."""
    shape = (TensorProto.FLOAT, ["batch", 4])
    node = helper.make_node("Frobnicate", ["x"], ["y"], domain="com.microsoft")
    return save(directory, [node], {"x": shape}, {"y": shape})


def hungry(directory: Path) -> OnnxModel:
    """A graph that holds two tensors of `n` numbers of 4 bytes at once."""
    return save(
        directory,
        [
            helper.make_node("ConstantOfShape", ["n"], ["big"]),
            helper.make_node("Neg", ["big"], ["other"]),
            helper.make_node("Sub", ["big", "other"], ["both"]),
            helper.make_node("ReduceSum", ["both"], ["y"]),
        ],
        {"n": (TensorProto.INT64, [1])},
        {"y": (TensorProto.FLOAT, [1])},
    )


def endless(directory: Path) -> OnnxModel:
    """A graph that multiplies matrices until somebody stops it."""
    one = (TensorProto.FLOAT, ["batch", 512])
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["in", "w"], ["out"]),
            helper.make_node("Identity", ["go"], ["still"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("in", *one),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("out", *one),
        ],
    )
    return save(
        directory,
        [helper.make_node("Loop", ["turns", "always", "x"], ["y"], body=body)],
        {"x": one},
        {"y": one},
        {
            "w": np.eye(512, dtype=np.float32),
            "turns": np.array(2**40, np.int64),
            "always": np.array(True),
        },
    )


def summed(directory: Path) -> OnnxModel:
    """x·w + b over 512 numbers: fused into one operator it rounds otherwise than as two."""
    rng = np.random.default_rng(0)
    shape = (TensorProto.FLOAT, ["batch", 512])
    return save(
        directory,
        [
            helper.make_node("MatMul", ["x", "w"], ["product"]),
            helper.make_node("Add", ["product", "b"], ["y"]),
        ],
        {"x": (TensorProto.FLOAT, [4, 512])},
        {"y": shape},
        {
            "w": rng.normal(size=(512, 512)).astype(np.float32),
            "b": 1e3 * rng.normal(size=512).astype(np.float32),
        },
    )
