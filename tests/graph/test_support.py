"""What a file needs of onnxruntime; each release was asked when the table was made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter.errors import ExportError, ModelError, ProfileError
from exporter.graph.mobile import mobile_usability
from exporter.graph.model import OnnxModel
from exporter.graph.releases import CONTRIB, NEWEST, minor_of
from exporter.graph.support import demand, examine
from exporter.target import Target, load_target
from exporter.toml import validated
from tests.graph.conftest import Exported


def _model(
    directory: Path,
    nodes: list[Any],
    constants: list[Any] | None = None,
    *,
    opset: int = 17,
    ir: int = 8,
) -> OnnxModel:
    """A graph from x (2, 64) to y."""
    directory.mkdir(exist_ok=True)
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "xy")
    domains = {node.domain for node in nodes if node.domain}
    proto = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], constants or []),
        opset_imports=[
            helper.make_opsetid("", opset),
            *(helper.make_opsetid(domain, 1) for domain in sorted(domains)),
        ],
    )
    proto.ir_version = ir
    onnx.save(proto, directory / "model.onnx")
    return OnnxModel(directory)


def _same() -> Any:
    return helper.make_node("Identity", ["x"], ["y"])


def _n_bits(bits: int, inputs: int = 3) -> Any:
    return helper.make_node(
        "MatMulNBits",
        ["x", "b", "s", *[""] * (inputs - 3)],
        ["y"],
        domain="com.microsoft",
        K=64,
        N=8,
        bits=bits,
        block_size=32,
    )


@pytest.mark.parametrize(
    ("opset", "ir", "oldest"),
    [
        (13, 7, "1.16"),
        (20, 9, "1.17"),
        (20, 10, "1.18"),
        (22, 10, "1.21"),
        (23, 11, "1.23"),
        (17, 12, "1.24"),
        (99, 10, None),
    ],
)
def test_opset_and_ir_version(opset: int, ir: int, oldest: str | None, tmp_path: Path) -> None:
    assert examine(_model(tmp_path / "m", [_same()], opset=opset, ir=ir)).oldest == oldest


@pytest.mark.parametrize(
    ("node", "oldest"),
    [
        (_n_bits(4), "1.17"),
        (_n_bits(8), "1.22"),
        (_n_bits(2), "1.24"),
        (_n_bits(4, inputs=6), "1.19"),
        (helper.make_node("FastGelu", ["x"], ["y"], domain="com.microsoft"), "1.16"),
        (helper.make_node("GroupQueryAttention", ["x"] * 7, ["y"], domain="com.microsoft"), "1.18"),
        (
            helper.make_node(
                "GroupQueryAttention", ["x"] * 12, ["y"], domain="com.microsoft", softcap=0.0
            ),
            "1.23",
        ),
        (helper.make_node("NobodyKnows", ["x"], ["y"], domain="com.microsoft"), None),
        (helper.make_node("Mine", ["x"], ["y"], domain="my.own"), None),
    ],
)
def test_operators_of_microsoft(node: Any, oldest: str | None, tmp_path: Path) -> None:
    assert examine(_model(tmp_path / "m", [node])).oldest == oldest


def test_constants_of_four_bits_need_a_later_release_than_their_opset(tmp_path: Path) -> None:
    four = helper.make_tensor("w", TensorProto.INT4, [64], [0] * 64)
    scale = numpy_helper.from_array(np.float32(1), "s")
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["d"]),
        helper.make_node("Add", ["x", "d"], ["y"]),
    ]
    support = examine(_model(tmp_path / "m", nodes, [four, scale], opset=21, ir=10))
    assert support.oldest == "1.19"
    assert [need.what for need in support.refused_by("1.18.1")] == ["constants of type int4"]


def test_nodes_of_subgraphs_count(tmp_path: Path) -> None:
    inner = helper.make_graph(
        [_n_bits(8)], "inner", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    )
    condition = numpy_helper.from_array(np.array(True), "c")
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    support = examine(_model(tmp_path / "m", [node], [condition]))
    assert support.oldest == "1.22"
    # each need is named once
    assert len(support.needs) == len(set(support.needs))


def test_a_refusal_names_opset_and_versions(tmp_path: Path) -> None:
    support = examine(_model(tmp_path / "m", [_same()], opset=22, ir=10))
    demand(support, "1.21", "model.onnx")
    with pytest.raises(ExportError) as caught:
        demand(support, "1.20", "model.onnx")
    told = str(caught.value)
    assert told.startswith("model.onnx: must run on onnxruntime 1.20 (runtime_version)")
    assert "opset 22, which came with 1.21" in told
    assert "name a later runtime_version" in told


def test_later_releases_run_what_the_newest_known_one_runs() -> None:
    assert minor_of("1.99.3") == NEWEST
    assert minor_of("1.20.1") == 20


def test_operators_that_run_here_are_known() -> None:
    """Every CPU kernel of com.microsoft that this onnxruntime has stands in the table."""
    import onnxruntime
    import onnxruntime.capi.onnxruntime_pybind11_state as binding

    if minor_of(onnxruntime.__version__) != int(onnxruntime.__version__.split(".")[1]):
        pytest.skip("a later release than the table knows")
    here = {
        kernel.op_name
        for kernel in binding.get_all_opkernel_def()
        if kernel.domain == "com.microsoft" and kernel.provider == "CPUExecutionProvider"
    }
    minor = minor_of(onnxruntime.__version__)
    assert here == {name for name, since in CONTRIB.items() if since <= minor}


def test_what_the_exporter_writes(exported: Callable[[str], Exported]) -> None:
    """Opened in every release from 1.16 on when the table was made: these are the first."""
    assert examine(exported("bert").model).oldest == "1.18"
    assert examine(exported("mobilenetv2").model).oldest == "1.18"
    assert examine(exported("llama").model).oldest == "1.23"


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\xff\xff no model")
    with pytest.raises(ModelError, match="must be an ONNX file"):
        examine(OnnxModel(tmp_path))


@pytest.mark.parametrize(
    ("version", "said"), [("2.0", "such as '1.20'"), ("1.15", "1.16 or later"), ("1.x", "1.20")]
)
def test_profiles_name_a_release(version: str, said: str) -> None:
    values = load_target("mobile").model_dump() | {"runtime_version": version}
    with pytest.raises(ProfileError, match=f"runtime_version.*{said}"):
        validated(Target, values, place="my.toml")
    known = Target.model_validate(values | {"runtime_version": "1.20.1", "format": "ort"})
    assert (known.runtime_version, known.format) == ("1.20.1", "ort")


def test_accelerators_of_phones(exported: Callable[[str], Exported]) -> None:
    found = mobile_usability(exported("mobilenetv2").model)
    assert set(found) == {"nnapi", "coreml_neuralnetwork", "coreml_mlprogram"}
    nnapi = found["nnapi"]
    assert nnapi["as_is"]["recommendation"] == "no"  # a dynamic batch axis
    assert nnapi["fixed_shapes"]["recommendation"] == "yes"
    assert nnapi["fixed_shapes"]["partitions"] == 1
    assert nnapi["fixed_shapes"]["supported_nodes"] == nnapi["fixed_shapes"]["nodes"] > 50
    encoder = mobile_usability(exported("bert").model)["coreml_mlprogram"]
    assert "ai.onnx:Expand" in encoder["fixed_shapes"]["unsupported"]
