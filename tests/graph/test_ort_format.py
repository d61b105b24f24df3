"""model.ort answers like model.onnx, is optimized for its platform, and lists what it needs."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from exporter.errors import ExportError
from exporter.graph import ort_format
from exporter.graph.audit import optimized
from exporter.graph.model import OnnxModel
from exporter.graph.ort_format import (
    OPERATORS_FILE,
    ORT_FILE,
    add_ort_format,
    convert,
    operator_names,
    prove,
)
from exporter.graph.session import OnnxRun, make_session, open_run, session_options, write_session
from exporter.graph.support import examine_ort
from exporter.models.examples import Feeds
from tests.devices.graphs import product
from tests.graph.conftest import Exported


def _copy(exported: Callable[[str], Exported], family: str, out: Path) -> OnnxModel:
    shutil.copytree(exported(family).model.directory, out)
    return OnnxModel(out)


def _feeds(family: str) -> Feeds:
    rng = np.random.default_rng(0)
    if family in ("vit", "mobilenetv2"):
        size = 16 if family == "vit" else 32
        return {"pixel_values": rng.random((2, 3, size, size)).astype(np.float32)}
    ids = rng.integers(5, 37, (2, 12))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


@pytest.mark.parametrize("family", ["bert", "vit", "mobilenetv2", "llama", "gpt2"])
def test_it_answers_like_the_model_and_leaves_nothing_else(
    family: str, exported: Callable[[str], Exported], tmp_path: Path
) -> None:
    model = _copy(exported, family, tmp_path / "m")
    before = {path.name for path in model.directory.iterdir()}
    found = add_ort_format(model, "arm", _feeds(family), exact=True)
    assert {path.name for path in model.directory.iterdir()} - before == {ORT_FILE, OPERATORS_FILE}
    assert found.size_bytes == (model.directory / ORT_FILE).stat().st_size
    assert found.difference < 1e-4
    run = OnnxRun(make_session(model.directory / ORT_FILE, session_options(1), ()), ORT_FILE)
    ours = open_run(model)(_feeds(family))
    for name, array in run(_feeds(family)).items():
        np.testing.assert_allclose(array, ours[name], rtol=1e-3, atol=1e-3)
    assert OnnxModel(model.directory).weight_files() == [model.path]


def test_required_operators_are_those_that_run(
    exported: Callable[[str], Exported], tmp_path: Path
) -> None:
    model = _copy(exported, "bert", tmp_path / "m")
    add_ort_format(model, "amd64", _feeds("bert"), exact=True)
    text = (model.directory / OPERATORS_FILE).read_text(encoding="utf-8")
    graph = onnx.load(optimized(model, tmp_path)).graph
    runs = {f"{node.domain or 'ai.onnx'}:{node.op_type}" for node in graph.node}
    assert set(operator_names(text)) == runs
    assert '{"inputs": {"0": ["float"]}}' in text  # types are reduced too
    assert str(tmp_path) not in text
    assert text.startswith("# Operators and types of model.ort")


def test_platforms_differ_in_a_convolutional_network(
    exported: Callable[[str], Exported], tmp_path: Path
) -> None:
    """Blocked layouts are for the x86 CPU that converts; Arm must not get them."""
    model = exported("mobilenetv2").model
    listed = {}
    for platform in ("arm", "amd64"):
        (tmp_path / platform).mkdir()
        _, operators = convert(model, platform, tmp_path / platform)  # type: ignore[arg-type]
        listed[platform] = operator_names(operators.read_text(encoding="utf-8"))
    assert any(name.startswith("com.microsoft.nchwc:") for name in listed["amd64"])
    assert not any(name.startswith("com.microsoft.nchwc:") for name in listed["arm"])
    assert "com.microsoft:FusedConv" in listed["arm"]


def test_two_conversions_are_equal_from_the_graph_on(
    exported: Callable[[str], Exported], tmp_path: Path
) -> None:
    found = [
        add_ort_format(
            _copy(exported, "bert", tmp_path / name), "arm", _feeds("bert"), exact=True
        ).graph_sha256
        for name in ("one", "two")
    ]
    assert found[0] == found[1]
    texts = [(tmp_path / name / OPERATORS_FILE).read_bytes() for name in ("one", "two")]
    assert texts[0] == texts[1]


def test_optimizers_that_the_session_leaves_out_stay_out(
    exported: Callable[[str], Exported], tmp_path: Path
) -> None:
    listed = []
    for name, disabled in (("all", ()), ("fewer", ("LayerNormFusion", "SkipLayerNormFusion"))):
        model = _copy(exported, "bert", tmp_path / name)
        write_session(model, disabled)
        out = tmp_path / f"{name}-out"
        out.mkdir()
        _, operators = convert(model, "arm", out)
        listed.append(Counter(operator_names(operators.read_text(encoding="utf-8"))))
    assert "com.microsoft:SkipLayerNormalization" in listed[0]
    assert "com.microsoft:SkipLayerNormalization" not in listed[1]


def test_its_operators_can_need_a_later_release(
    exported: Callable[[str], Exported], tmp_path: Path
) -> None:
    """Converted, llama has every attribute this release gives GroupQueryAttention."""
    from exporter.graph.support import examine

    model = exported("llama").model
    path, _ = convert(model, "arm", tmp_path)
    ort, plain = examine_ort(path), examine(model)
    assert plain.oldest == "1.23"
    assert ort.oldest is not None
    assert int(ort.oldest[2:]) >= 30
    assert any(need.what == "attribute causal" for need in ort.refused_by("1.29"))


def test_an_operator_that_is_a_function_elsewhere_needs_a_kernel_in_ort_format(
    tmp_path: Path,
) -> None:
    """1.17 takes the opset and has no kernel for its Gelu; it opens the .onnx and not the .ort."""
    from onnx import TensorProto, helper

    from exporter.graph.support import examine

    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 8]) for n in "xy")
    proto = helper.make_model(
        helper.make_graph([helper.make_node("Gelu", ["x"], ["y"])], "g", [x], [y]),
        opset_imports=[helper.make_opsetid("", 20)],
    )
    proto.ir_version = 9
    onnx.save(proto, tmp_path / "model.onnx")
    model = OnnxModel(tmp_path)
    (tmp_path / "out").mkdir()
    path, _ = convert(model, "arm", tmp_path / "out")
    assert examine(model).oldest == "1.17"
    assert examine_ort(path).oldest == "1.18"


def test_other_answers_do_not_ship(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    model = _copy(exported, "vit", tmp_path / "m")
    other = _copy(exported, "vit", tmp_path / "other")
    proto = onnx.load(other.path)
    largest = max(proto.graph.initializer, key=lambda t: len(t.raw_data))
    values = numpy_helper.to_array(largest) * 1.01
    largest.CopyFrom(numpy_helper.from_array(values.astype(np.float32), largest.name))
    onnx.save(proto, other.path)
    (tmp_path / "out").mkdir()
    path, _ = convert(other, "arm", tmp_path / "out")
    with pytest.raises(ExportError, match=r"like model\.onnx within 0\.0001 of the RMS"):
        prove(model, path, _feeds("vit"), exact=True, place="model.ort")
    flipped = numpy_helper.from_array((values * -3).astype(np.float32), largest.name)
    largest.CopyFrom(flipped)
    onnx.save(proto, other.path)
    path, _ = convert(other, "arm", tmp_path / "out")
    with pytest.raises(ExportError, match=r"a cosine above 0\.999"):
        prove(model, path, _feeds("vit"), exact=False, place="model.ort")


def test_a_conversion_that_answers_otherwise_is_not_left_beside_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, other = (product(tmp_path / name, 8, seed) for seed, name in enumerate(("m", "other")))
    before = sorted(path.name for path in model.directory.iterdir())
    right = ort_format.convert
    monkeypatch.setattr(ort_format, "convert", lambda _, *where: right(other, *where))
    feeds = {"x": np.ones((2, 8), np.float32)}
    for exact in (True, False):
        with pytest.raises(ExportError, match=r"must answer like model\.onnx"):
            add_ort_format(model, "arm", feeds, exact=exact)
    assert sorted(path.name for path in model.directory.iterdir()) == before


def test_what_cannot_be_converted_says_so_and_leaves_nothing(
    exported: Callable[[str], Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _copy(exported, "vit", tmp_path / "m")
    before = sorted(path.name for path in model.directory.iterdir())
    monkeypatch.setattr(ort_format, "LARGEST_BYTES", 1000)
    with pytest.raises(ExportError, match=r'weights must be below 2 GiB.*format = "onnx"'):
        add_ort_format(model, "arm", _feeds("vit"), exact=True)
    monkeypatch.undo()
    model.path.write_bytes(b"broken")
    with pytest.raises(ExportError, match="onnxruntime does not convert it"):
        add_ort_format(model, "arm", _feeds("vit"), exact=True)
    assert sorted(path.name for path in model.directory.iterdir()) == before


def test_names_in_a_configuration() -> None:
    text = (
        "# made for a test\n"
        'ai.onnx;13;Cast{"inputs": {"0": ["float"]}, "outputs": {"0": ["bool"]}},MatMul\n'
        "com.microsoft;1;BiasGelu,FusedMatMul\n"
    )
    assert operator_names(text) == (
        "ai.onnx:Cast",
        "ai.onnx:MatMul",
        "com.microsoft:BiasGelu",
        "com.microsoft:FusedMatMul",
    )
