"""Linear layers in every dress an exporter or a user's file may give them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter.errors import QuantizeError
from exporter.graph.model import OnnxModel
from exporter.graph.session import open_run
from exporter.quantize import QuantizeOptions, get_scheme
from tests.quantize.conftest import examples

RNG = np.random.default_rng(7)
SCHEMES = ("dynamic-int8", "static-int8", "int8-weights")
Nodes = list[Any]


def weight(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.normal(size=shape).astype(np.float32) / np.float32(np.sqrt(shape[0]))


def saved(
    directory: Path,
    nodes: Nodes,
    constants: dict[str, Any],
    *,
    inputs: tuple[Any, ...] | None = None,
    rank: int = 2,
    opset: int = 20,
) -> OnnxModel:
    directory.mkdir()
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 32])
    graph = helper.make_graph(
        nodes,
        "graph",
        list(inputs or (x,)),
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, list("abcd")[:rank])],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, str(directory / "model.onnx"))
    return OnnxModel(directory)


def transposed(perm: list[int]) -> Callable[[], tuple[Nodes, dict[str, Any]]]:
    return lambda: (
        [
            helper.make_node("Transpose", ["w"], ["t"], perm=perm),
            helper.make_node("MatMul", ["x", "t"], ["logits"]),
        ],
        {"w": weight(48, 32)},
    )


def gemm() -> tuple[Nodes, dict[str, Any]]:
    return (
        [helper.make_node("Gemm", ["x", "w", "b"], ["logits"], transB=1)],
        {"w": weight(48, 32), "b": weight(48)},
    )


def bias_first() -> tuple[Nodes, dict[str, Any]]:
    return (
        [
            helper.make_node("MatMul", ["x", "w"], ["m"]),
            helper.make_node("Add", ["b", "m"], ["logits"]),
        ],
        {"w": weight(32, 48), "b": weight(48)},
    )


def back_to_back() -> tuple[Nodes, dict[str, Any]]:
    """The second layer reads what replaced the first."""
    return (
        [
            helper.make_node("MatMul", ["x", "w"], ["m"]),
            helper.make_node("MatMul", ["m", "v"], ["logits"]),
        ],
        {"w": weight(32, 64), "v": weight(64, 16)},
    )


def shared_weight() -> tuple[Nodes, dict[str, Any]]:
    return (
        [
            helper.make_node("MatMul", ["x", "w"], ["m"]),
            helper.make_node("Tanh", ["m"], ["t"]),
            helper.make_node("MatMul", ["t", "w"], ["logits"]),
        ],
        {"w": weight(32, 32)},
    )


def same_input() -> tuple[Nodes, dict[str, Any]]:
    return (
        [
            helper.make_node("MatMul", ["x", "q"], ["a"]),
            helper.make_node("MatMul", ["x", "k"], ["b"]),
            helper.make_node("Mul", ["a", "b"], ["logits"]),
        ],
        {"q": weight(32, 24), "k": weight(32, 24)},
    )


def bias_that_others_read() -> tuple[Nodes, dict[str, Any]]:
    """The product before the bias is used elsewhere, so the Add must stay."""
    return (
        [
            helper.make_node("MatMul", ["x", "w"], ["m"]),
            helper.make_node("Add", ["m", "b"], ["s"]),
            helper.make_node("Mul", ["m", "s"], ["logits"]),
        ],
        {"w": weight(32, 48), "b": weight(48)},
    )


DRESSES: dict[str, tuple[Callable[[], tuple[Nodes, dict[str, Any]]], int]] = {
    "transposed": (transposed([1, 0]), 1),
    "gemm": (gemm, 1),
    "bias first": (bias_first, 1),
    "back to back": (back_to_back, 2),
    "shared weight": (shared_weight, 2),
    "same input": (same_input, 2),
    "bias others read": (bias_that_others_read, 1),
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dress", list(DRESSES))
def test_every_dress_is_found_and_computes_the_same(
    scheme: str, dress: str, tmp_path: Path
) -> None:
    make, planned = DRESSES[dress]
    model = saved(tmp_path / "source", *make())
    feeds = [{"x": RNG.normal(size=32).astype(np.float32)} for _ in range(16)]
    options = QuantizeOptions(examples(feeds, {}))
    result = get_scheme(scheme).quantize(model, tmp_path / "out", options)
    assert (result.planned, result.integer, result.kept_float) == (planned, planned, ())
    batch = {"x": np.stack([f["x"] for f in feeds])}
    expected, got = open_run(model)(batch)["logits"], open_run(result.model)(batch)["logits"]
    assert np.square(expected - got).mean() < 1e-3 * np.square(expected).mean()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_product_that_is_no_linear_layer_stays_float_and_is_named(
    scheme: str, tmp_path: Path
) -> None:
    scaled = helper.make_node("Gemm", ["x", "w"], ["m"], alpha=0.5, name="scaled")
    plain = helper.make_node("MatMul", ["m", "v"], ["logits"], name="plain")
    constants = {"w": weight(32, 32), "v": weight(32, 16)}
    model = saved(tmp_path / "source", [scaled, plain], constants)
    calibration = examples([{"x": np.ones(32, np.float32)}], {})
    result = get_scheme(scheme).quantize(model, tmp_path / "out", QuantizeOptions(calibration))
    assert result.kept_float == ("scaled",)
    assert result.planned == 1


@pytest.mark.parametrize("scheme", ["dynamic-int8", "int4-weights", "int8-weights"])
@pytest.mark.parametrize("width", [48, 40])
def test_embedding_rows_are_scaled_back(scheme: str, width: int, tmp_path: Path) -> None:
    """40 is no multiple of the smallest block: such a table stays float in blocks, and is named."""
    table = (RNG.normal(size=(100, width)) * RNG.uniform(0.1, 9, (100, 1))).astype(np.float32)
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "tokens"])
    nodes = [helper.make_node("Gather", ["table", "ids"], ["logits"], name="lookup")]
    model = saved(tmp_path / "source", nodes, {"table": table}, inputs=(ids,), rank=3)
    result = get_scheme(scheme).quantize(model, tmp_path / "out", QuantizeOptions())
    feeds = {"ids": np.arange(100, dtype=np.int64).reshape(2, 50)}
    rows = open_run(result.model)(feeds)["logits"].reshape(100, width)
    relative = np.abs(rows - table).max(axis=1) / np.abs(table).max(axis=1)
    assert relative.max() < 0.01
    blockwise = scheme != "dynamic-int8" and width == 40
    assert result.kept_float == (("lookup",) if blockwise else ())


@pytest.mark.parametrize("scheme", ["dynamic-int8", "int8-weights", "int4-weights"])
def test_a_nan_weight_is_named(scheme: str, tmp_path: Path) -> None:
    broken = weight(32, 16)
    broken[3, 3] = np.nan
    nodes = [helper.make_node("MatMul", ["x", "w.bad"], ["logits"])]
    model = saved(tmp_path / "source", nodes, {"w.bad": broken})
    with pytest.raises(QuantizeError, match=r"w\.bad"):
        get_scheme(scheme).quantize(model, tmp_path / "out", QuantizeOptions())


def test_graphs_without_work_and_old_graphs_are_refused(tmp_path: Path) -> None:
    relu = [helper.make_node("Relu", ["x"], ["logits"])]
    idle = saved(tmp_path / "idle", relu, {})
    product = [helper.make_node("MatMul", ["x", "w"], ["logits"])]
    old = saved(tmp_path / "old", product, {"w": weight(32, 8)}, opset=11)
    for scheme in (*SCHEMES, "int4-weights"):
        assert "no linear layer" in str(get_scheme(scheme).applies(idle, "text-classification"))
        assert "opset 11" in str(get_scheme(scheme).applies(old, "text-classification"))


def test_a_bias_beyond_int32_steps_keeps_its_value(tmp_path: Path) -> None:
    """Weights near zero with a large bias: the step must grow, or the bias wraps around."""
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["logits"])]
    tiny = weight(4, 3, 3, 3) * np.float32(1e-9)
    constants = {"w": tiny, "b": np.array([5, -3, 1, 0], np.float32)}
    model = saved(tmp_path / "source", nodes, constants, inputs=(image,), rank=4)
    feeds = [{"x": RNG.random((3, 8, 8)).astype(np.float32)} for _ in range(4)]
    options = QuantizeOptions(examples(feeds, {}))
    result = get_scheme("static-int8").quantize(model, tmp_path / "out", options)
    answer = open_run(result.model)({"x": feeds[0]["x"][None]})["logits"]
    np.testing.assert_allclose(answer.mean(axis=(0, 2, 3)), constants["b"], atol=0.05)
