"""Training rounds as the quantizers and onnxruntime's kernels do, bit for bit."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from exporter.compress.rounding import (
    block_weight,
    dynamic_input,
    int8_weight,
    static_input,
    straight,
)
from exporter.quantize.calibrate import Range
from exporter.quantize.integers import blocks, symmetric


def _weight(*shape: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal(shape).astype(np.float32)
    weight[0] = 0
    weight[1, 0] = 9.0  # an outlier, and a pair that could saturate with its neighbour
    weight[1, 1] = 8.9
    return weight


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("shape", [(6, 8), (5, 7), (4, 3, 3, 3), (4, 1, 3, 3)])
def test_weights_are_the_quantizers(shape: tuple[int, ...], per_channel: bool, safe: bool) -> None:
    weight = _weight(*shape) if shape[1] > 1 else np.random.default_rng(0).random(shape, np.float32)
    matrix = len(shape) == 2
    made = symmetric(
        weight, axis=0 if per_channel else None, safe=safe, inner=1 if matrix else None
    )
    scale = made.scale.reshape((-1,) + (1,) * (len(shape) - 1)) if per_channel else made.scale
    expected = made.values.astype(np.float32) * scale
    found = int8_weight(
        torch.from_numpy(weight), per_channel=per_channel, safe=safe, neighbours=matrix
    )
    np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("width", [64, 48, 40])
def test_blocks_are_the_quantizers(bits: int, width: int) -> None:
    weight = _weight(6, width)
    from exporter.quantize.blockwise import fitting_block

    made = blocks(weight.T, block_size=fitting_block(width, 32), bits=bits)
    found = block_weight(torch.from_numpy(weight), block_size=32, bits=bits)
    np.testing.assert_array_equal(found.numpy().T, made.dequantized()[:width])


def _onnx(op: str, x: np.ndarray, *constants: np.ndarray) -> list[np.ndarray]:
    """What onnxruntime makes of x: levels, and the scale and zero point that it took."""
    names = [f"c{i}" for i in range(len(constants))]
    outputs = ["y", "scale", "zero"] if op == "DynamicQuantizeLinear" else ["y"]
    graph = helper.make_graph(
        [helper.make_node(op, ["x", *names], outputs)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [onnx.numpy_helper.from_array(c, n) for c, n in zip(constants, names, strict=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"x": x}))


def _activations(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((17, 33)).astype(np.float32) * 10 ** float(rng.uniform(-3, 3))
    return {0: x, 1: np.abs(x), 2: -np.abs(x), 3: np.round(x), 4: x * 0}[seed % 5]


@pytest.mark.parametrize("seed", range(20))
def test_dynamic_activations_are_onnxruntimes(seed: int) -> None:
    x = _activations(seed)
    levels, scale, zero = _onnx("DynamicQuantizeLinear", x)
    expected = (levels.astype(np.float32) - np.float32(zero)) * scale
    np.testing.assert_array_equal(dynamic_input(torch.from_numpy(x)).numpy(), expected)


@pytest.mark.parametrize("seed", range(20))
def test_static_activations_are_onnxruntimes(seed: int) -> None:
    x = _activations(seed)
    span = Range(min(0.0, float(x.min()) * 0.7), max(0.0, float(x.max()) * 0.7))
    low, high = torch.tensor(span.low), torch.tensor(span.high)
    span = Range(float(low), float(high))
    (levels,) = _onnx(
        "QuantizeLinear", x, np.asarray(span.scale), np.asarray(span.zero_point, np.uint8)
    )
    expected = (levels.astype(np.float32) - np.float32(span.zero_point)) * span.scale
    np.testing.assert_array_equal(static_input(torch.from_numpy(x), low, high).numpy(), expected)


def test_gradients_pass_straight_through_but_not_where_values_are_clipped() -> None:
    x = torch.tensor([-3.0, -0.4, 0.0, 0.7, 5.0], requires_grad=True)
    static_input(x, torch.tensor(-1.0), torch.tensor(1.0)).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]
    weight = torch.randn(4, 6, requires_grad=True)
    rounded = int8_weight(weight, per_channel=True, safe=True, neighbours=True)
    (rounded * 2).sum().backward()
    assert weight.grad is not None
    assert (weight.grad == 2).all()


def test_what_goes_forward_is_the_rounded_value_itself() -> None:
    """x + (rounded − x) in floats would not be."""
    x, rounded = torch.tensor([1e8, 0.1]), torch.tensor([0.3, 1e-9])
    assert torch.equal(straight(x, rounded), rounded)


@pytest.mark.parametrize("bits", [4, 8])
def test_zero_is_exactly_zero(bits: int) -> None:
    """Sparsity survives: a weight that is zero is zero in every scheme."""
    weight = torch.from_numpy(_weight(8, 64))
    weight[torch.rand(8, 64, generator=torch.Generator().manual_seed(0)) < 0.6] = 0
    zeros = weight == 0
    for per_channel in (True, False):
        rounded = int8_weight(weight, per_channel=per_channel, safe=True, neighbours=True)
        assert (rounded[zeros] == 0).all()
    assert (block_weight(weight, block_size=16, bits=bits)[zeros] == 0).all()
    x = torch.tensor([0.0, 3.0, 0.0, -1.0])
    assert (dynamic_input(x)[x == 0] == 0).all()
