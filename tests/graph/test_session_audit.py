"""A session takes loose feeds and shipped settings; the audit sees what onnxruntime runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter.errors import ModelError
from exporter.graph.audit import audit
from exporter.graph.model import OnnxModel
from exporter.graph.session import open_run, position_ids, read_session, write_session


def small(directory: Path, *, external: bool = False) -> OnnxModel:
    """MatMul with a weight, then a product of activations: (batch, sequence, 16) inside."""
    rng = np.random.default_rng(0)
    table = numpy_helper.from_array(rng.normal(size=(50, 16)).astype(np.float32), "table")
    weight = numpy_helper.from_array(rng.normal(size=(16, 8)).astype(np.float32), "weight")
    shape: list[Any] = ["batch", "sequence"]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"], "embed"),
        helper.make_node("MatMul", ["rows", "weight"], ["hidden"], "linear"),
        helper.make_node("Transpose", ["hidden"], ["turned"], "turn", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["hidden", "turned"], ["logits"], "scores"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [*shape, "sequence"])],
        [table, weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    directory.mkdir(exist_ok=True)
    onnx.save(
        model,
        directory / "model.onnx",
        save_as_external_data=external,
        location="model.onnx.data",
        size_threshold=0,
    )
    return OnnxModel(directory)


def test_run_drops_strangers_and_casts(tmp_path: Path) -> None:
    run = open_run(small(tmp_path))
    tokens = np.array([[1, 2, 3]])
    clean = run({"input_ids": tokens})
    loose = run({"input_ids": tokens.astype(np.int32), "attention_mask": np.ones((1, 3))})
    assert list(clean) == ["logits"]
    assert clean["logits"].shape == (1, 3, 3)
    np.testing.assert_array_equal(clean["logits"], loose["logits"])


def test_run_names_the_missing_input(tmp_path: Path) -> None:
    run = open_run(small(tmp_path))
    with pytest.raises(ModelError, match="needs the input 'input_ids', got only pixel_values"):
        run({"pixel_values": np.zeros((1, 3))})


def test_run_explains_feeds_that_the_graph_refuses(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"must run on the inputs input_ids int64\[1, 1\]"):
        open_run(small(tmp_path))({"input_ids": np.array([[5000]])})


def test_truncated_file_is_an_input_error(tmp_path: Path) -> None:
    model = small(tmp_path)
    model.path.write_bytes(model.path.read_bytes()[:-40])
    with pytest.raises(ModelError, match="must load in onnxruntime"):
        open_run(model)


def test_session_settings_travel_with_the_model(tmp_path: Path) -> None:
    model = small(tmp_path)
    assert read_session(model) == ()
    write_session(model, ("SkipLayerNormFusion",))
    assert read_session(model) == ("SkipLayerNormFusion",)
    open_run(model)({"input_ids": np.array([[1]])})
    write_session(model, ())
    assert not (tmp_path / "session.json").exists()
    (tmp_path / "session.json").write_text('{"disabled_optimizers": 3}')
    with pytest.raises(ModelError, match="must hold session settings"):
        open_run(model)


def test_positions_skip_padding_and_past() -> None:
    mask = np.array([[0, 0, 1, 1], [1, 1, 1, 1]])
    np.testing.assert_array_equal(position_ids(mask, 4), [[1, 1, 0, 1], [0, 1, 2, 3]])
    np.testing.assert_array_equal(position_ids(mask, 1), [[1], [3]])


def test_audit_names_the_float_weight_but_not_activations(tmp_path: Path) -> None:
    found = audit(small(tmp_path), planned=1)
    assert found.float_matmuls == ("linear",)
    assert (found.integer_kernels, found.missing) == (0, 1)
    assert found.to_json()["planned"] == 1


@pytest.mark.parametrize("external", [False, True])
def test_audit_counts_integer_kernels(tmp_path: Path, external: bool) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    source = small(tmp_path / "float", external=external)
    (tmp_path / "int8").mkdir()
    model = OnnxModel(tmp_path / "int8")
    quantize_dynamic(source.path, model.path, weight_type=QuantType.QInt8)
    found = audit(model, planned=2)
    assert found.integer_kernels == 2  # the linear and the embedding
    assert found.float_matmuls == ()
    assert found.missing == 0
    assert any("Integer" in kernel or "Quantize" in kernel for kernel in found.kernels)


def formats(directory: Path) -> OnnxModel:
    """Three tables, added up, and a product with 4-bit weights: (batch, sequence, 128)."""
    rng = np.random.default_rng(0)
    constants = {
        "single": rng.normal(size=(64, 64)).astype(np.float32),
        "half": rng.normal(size=(64, 64)).astype(np.float16),
        "byte": rng.integers(0, 255, (64, 64), np.uint8),
        "packed": rng.integers(0, 255, (128, 2, 16), np.uint8),
        "scales": rng.random(256).astype(np.float32),
    }
    gather = [helper.make_node("Gather", [n, "ids"], [f"{n}-rows"], n) for n in list(constants)[:3]]
    cast = [
        helper.make_node("Cast", [f"{n}-rows"], [f"{n}-float"], to=TensorProto.FLOAT)
        for n in ("half", "byte")
    ]
    product = helper.make_node(
        "MatMulNBits",
        ["sum", "packed", "scales"],
        ["logits"],
        "product",
        domain="com.microsoft",
        K=64,
        N=128,
        bits=4,
        block_size=32,
    )
    added = helper.make_node("Sum", ["single-rows", "half-float", "byte-float"], ["sum"])
    shape: list[Any] = ["batch", "sequence"]
    graph = helper.make_graph(
        [*gather, *cast, added, product],
        "formats",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [*shape, 128])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.save(model, directory / "model.onnx")
    return OnnxModel(directory)


def test_audit_names_the_format_and_size_of_each_layer(tmp_path: Path) -> None:
    found = {layer.name: layer for layer in audit(formats(tmp_path)).layers}
    assert {name: (x.op, x.format, x.size_bytes) for name, x in found.items()} == {
        "single": ("Gather", "float32", 64 * 64 * 4),
        "half": ("Gather", "float16", 64 * 64 * 2),
        "byte": ("Gather", "int8", 64 * 64),
        "product": ("MatMulNBits", "int4", 64 * 128 // 2 + 256 * 4),
    }
    assert list(found)[-1] == "product"  # in the order they run
