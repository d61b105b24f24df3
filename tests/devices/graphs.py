"""Small ONNX graphs, node by node: a matrix product, and a language model with a cache."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from exporter.graph.model import OnnxModel

VOCABULARY, WIDTH = 32, 4


def _save(directory: Path, nodes: list, inputs: list, outputs: list, weights: dict) -> OnnxModel:
    directory.mkdir(parents=True, exist_ok=True)
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, directory / "model.onnx")
    return OnnxModel(directory)


def listening() -> None:
    """For a child process: Ctrl-C interrupts it, though a shell may ignore that behind our back."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def product(directory: Path, size: int, seed: int = 0) -> OnnxModel:
    """x (batch, size) -> y (batch, size), one matrix product; size² × 4 bytes of weights."""
    weight = np.random.default_rng(seed).normal(size=(size, size)).astype(np.float32)
    return _save(
        directory,
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", size])],
        {"w": weight},
    )


def integer_product(directory: Path, size: int, weight: int | None = None) -> OnnxModel:
    """x (batch, size) uint8 -> y (batch, size) int32, one MatMulInteger with int8 weights.

    All weights are `weight`: 127, with x at 255, overflows sums of two products in int16.
    """
    drawn = np.random.default_rng(0).integers(-127, 128, (size, size))
    weights = drawn if weight is None else np.full((size, size), weight)
    return _save(
        directory,
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["batch", size])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, ["batch", size])],
        {"w": weights.astype(np.int8)},
    )


def cached_decoder(directory: Path) -> OnnxModel:
    """A one-layer language model whose logits depend on the sum of its cache and on positions."""
    rng = np.random.default_rng(0)
    past = ["batch", 1, "past", WIDTH]
    whole = ["batch", 1, "total", WIDTH]
    ints, floats = TensorProto.INT64, TensorProto.FLOAT
    value = helper.make_tensor_value_info
    return _save(
        directory,
        [
            helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
            helper.make_node("Cast", ["position_ids"], ["positions"], to=floats),
            helper.make_node("Unsqueeze", ["positions", "last"], ["columns"]),
            helper.make_node("Add", ["embedded", "columns"], ["placed"]),
            helper.make_node("Unsqueeze", ["placed", "one"], ["new"]),
            helper.make_node("Concat", ["past_key_values.0.key", "new"], ["present.0.key"], axis=2),
            helper.make_node(
                "Concat", ["past_key_values.0.value", "new"], ["present.0.value"], axis=2
            ),
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=floats),
            helper.make_node("Unsqueeze", ["mask", "around"], ["weights"]),
            helper.make_node("Mul", ["present.0.key", "weights"], ["kept"]),
            helper.make_node("ReduceSum", ["kept", "two"], ["summed"], keepdims=0),
            helper.make_node("Add", ["placed", "summed"], ["mixed"]),
            helper.make_node("MatMul", ["mixed", "head"], ["logits"]),
        ],
        [
            value("input_ids", ints, ["batch", "new"]),
            value("attention_mask", ints, ["batch", "total"]),
            value("position_ids", ints, ["batch", "new"]),
            value("past_key_values.0.key", floats, past),
            value("past_key_values.0.value", floats, past),
        ],
        [
            value("logits", floats, ["batch", "new", VOCABULARY]),
            value("present.0.key", floats, whole),
            value("present.0.value", floats, whole),
        ],
        {
            "table": rng.normal(size=(VOCABULARY, WIDTH)).astype(np.float32),
            "head": rng.normal(size=(WIDTH, VOCABULARY)).astype(np.float32),
            "one": np.asarray([1], np.int64),
            "two": np.asarray([2], np.int64),
            "last": np.asarray([2], np.int64),
            "around": np.asarray([1, 3], np.int64),
        },
    )
