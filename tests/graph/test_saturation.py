"""Where sums of int8 products can saturate: every operator that has such sums, by its channels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from exporter.graph.audit import INTEGER_KERNELS
from exporter.graph.model import OnnxModel
from exporter.graph.saturation import CONVOLUTIONS, PRODUCTS, saturations

INPUTS, OUTPUTS, HEAVY = 8, 6, 5
Weight = NDArray[np.int8]


def _model(
    directory: Path,
    nodes: list[Any],
    inputs: list[Any],
    outputs: list[Any],
    weights: dict[str, Any],
) -> OnnxModel:
    initializers = [numpy_helper.from_array(np.asarray(w), name) for name, w in weights.items()]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(
        helper.make_model(graph, opset_imports=opsets, ir_version=10), directory / "model.onnx"
    )
    return OnnxModel(directory)


def _value(name: str, kind: int, *shape: int) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


U8, S32, F32 = TensorProto.UINT8, TensorProto.INT32, TensorProto.FLOAT
QUANTIZED = {"s": np.float32(0.1), "z": np.uint8(0), "zi": np.int8(0)}
X, Y = _value("x", U8, 1, INPUTS), _value("y", U8, 1, OUTPUTS)


def _integer(weight: Weight, out: Path) -> OnnxModel:
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"], "here")
    return _model(out, [node], [X], [_value("y", S32, 1, OUTPUTS)], {"w": weight})


def _linear(weight: Weight, out: Path) -> OnnxModel:
    node = helper.make_node(
        "QLinearMatMul", ["x", "s", "z", "w", "s", "zi", "s", "z"], ["y"], "here"
    )
    return _model(out, [node], [X], [Y], {**QUANTIZED, "w": weight})


def _gemm(weight: Weight, out: Path) -> OnnxModel:
    given = ["x", "s", "z", "w", "s", "zi", "", "s", "z"]
    node = helper.make_node("QGemm", given, ["y"], "here", domain="com.microsoft")
    return _model(out, [node], [X], [Y], {**QUANTIZED, "w": weight})


def _turned_gemm(weight: Weight, out: Path) -> OnnxModel:
    given = ["x", "s", "z", "w", "s", "zi", "", "s", "z"]
    node = helper.make_node("QGemm", given, ["y"], "here", domain="com.microsoft", transB=1)
    return _model(out, [node], [X], [Y], {**QUANTIZED, "w": np.ascontiguousarray(weight.T)})


def _attention(weight: Weight, out: Path) -> OnnxModel:
    given = ["x", "w", "b", "s", "s", "", "z", "zi"]
    node = helper.make_node("QAttention", given, ["y"], "here", domain="com.microsoft", num_heads=1)
    weights = {**QUANTIZED, "w": weight, "b": np.zeros(OUTPUTS, np.float32)}
    x, y = _value("x", U8, 1, 3, INPUTS), _value("y", F32, 1, 3, OUTPUTS // 3)
    return _model(out, [node], [x], [y], weights)


def _convolution(weight: Weight, out: Path) -> OnnxModel:
    given = ["x", "s", "z", "w", "s", "zi", "s", "z"]
    node = helper.make_node("QLinearConv", given, ["y"], "here")
    kernel = np.ascontiguousarray(weight.T)[:, :, None, None]  # (out, in, 1, 1)
    x, y = _value("x", U8, 1, INPUTS, 3, 3), _value("y", U8, 1, OUTPUTS, 3, 3)
    return _model(out, [node], [x], [y], {**QUANTIZED, "w": kernel})


def _branch(weight: Weight, out: Path) -> OnnxModel:
    """In a subgraph, with the weight outside it."""
    y = _value("y", S32, 1, OUTPUTS)
    product = helper.make_node("MatMulInteger", ["x", "w"], ["y"], "here")
    zero = helper.make_node("Sub", ["c", "c"], ["y"])
    then, otherwise = (helper.make_graph([n], "branch", [], [y]) for n in (product, zero))
    node = helper.make_node("If", ["if"], ["y"], then_branch=then, else_branch=otherwise)
    given = [X, _value("if", TensorProto.BOOL), _value("c", S32, 1, OUTPUTS)]
    return _model(out, [node], given, [y], {"w": weight})


@pytest.mark.parametrize(
    "make", [_integer, _linear, _gemm, _turned_gemm, _attention, _convolution, _branch]
)
def test_each_operator_is_looked_at(
    make: Callable[[Weight, Path], OnnxModel], tmp_path: Path
) -> None:
    weight = np.full((INPUTS, OUTPUTS), 64, np.int8)  # two make 128, which is safe
    assert saturations(make(weight, tmp_path)) == ((), 1)
    weight[6:8, HEAVY] = -64, -65
    ((risk,), looked) = saturations(make(weight, tmp_path))
    assert looked == 1
    assert risk.channels == (HEAVY,)
    assert (risk.outputs, risk.worst) == (OUTPUTS, 255 * 129)


@pytest.mark.parametrize("risky", ["w", "r"])
def test_both_weights_of_an_lstm_are_looked_at(risky: str, tmp_path: Path) -> None:
    """What it makes of its input and of its state is added up alike, a direction at a time."""
    hidden, directions = 2, 2
    weights = {
        "w": np.full((directions, INPUTS, 4 * hidden), 64, np.int8),
        "r": np.full((directions, hidden, 4 * hidden), 64, np.int8),
    }
    scales = {f"{n}s": np.full(directions, 0.01, np.float32) for n in weights}
    zeros = {f"{n}z": np.zeros(directions, np.int8) for n in weights}
    node = helper.make_node(
        "DynamicQuantizeLSTM",
        ["x", "w", "r", "", "", "", "", "", "ws", "wz", "rs", "rz"],
        ["y"],
        "here",
        domain="com.microsoft",
        hidden_size=hidden,
        direction="bidirectional",
    )
    x, y = _value("x", F32, 3, 1, INPUTS), _value("y", F32, 3, directions, 1, hidden)

    def found() -> Any:
        return saturations(_model(tmp_path, [node], [x], [y], {**weights, **scales, **zeros}))

    assert found() == ((), 2)
    weights[risky][1, 0, HEAVY] = 65
    ((risk,), looked) = found()
    assert looked == 2
    assert (risk.op_type, risk.channels, risk.worst) == ("DynamicQuantizeLSTM", (HEAVY,), 255 * 129)


def test_no_integer_kernel_is_forgotten() -> None:
    """These multiply nothing, are exact with bytes at their largest, or do not run on x86 CPUs."""
    others = {
        "GatherBlockQuantized",
        "MatMulInteger16",
        "MatMulNBits",
        "QEmbedLayerNormalization",
        "QMoE",
        "QOrderedMatMul",
    }
    assert INTEGER_KERNELS - PRODUCTS.keys() - CONVOLUTIONS.keys() == others


def test_products_pair_neighbours_and_convolutions_any_two(tmp_path: Path) -> None:
    weight = np.zeros((INPUTS, OUTPUTS), np.int8)
    weight[[1, 2], HEAVY] = 127  # the second of one pair, the first of the next
    assert saturations(_integer(weight, tmp_path)) == ((), 1)
    ((risk,), _) = saturations(_convolution(weight, tmp_path))
    assert risk.channels == (HEAVY,)
