"""What is kept of a graph: large weights beside it, a user's own file, the chosen session."""

from __future__ import annotations

import io
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest

from exporter.errors import ModelError
from exporter.graph.audit import audit
from exporter.graph.fuse import choose_fusions, clearly_faster
from exporter.graph.quiet import quiet
from exporter.graph.session import open_run, read_session, write_session
from exporter.graph.source_onnx import adopt_onnx
from exporter.graph.tidy import save_graph
from tests.graph.conftest import Exported
from tests.graph.test_session_audit import small

TOKENS = {"input_ids": np.array([[3, 1, 4, 1, 5]])}


def test_large_weights_go_to_a_file_beside_the_graph(tmp_path: Path) -> None:
    source = small(tmp_path / "source")
    graph = onnx_ir.load(source.path)
    large = save_graph(graph, tmp_path / "large", inline_limit_bytes=100)
    assert [p.name for p in large.weight_files()] == ["model.onnx", "model.onnx.data"]
    np.testing.assert_array_equal(
        open_run(large)(TOKENS)["logits"], open_run(source)(TOKENS)["logits"]
    )
    assert audit(large) == audit(source)


def _renamed(directory: Path, model: onnx.ModelProto) -> Path:
    directory.mkdir()
    path = directory / "theirs.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def test_adopting_keeps_the_function_and_drops_the_notes(tmp_path: Path) -> None:
    source = small(tmp_path / "source")
    proto = onnx.load(source.path)
    proto.doc_string = proto.graph.node[0].doc_string = "built in /home/someone"
    proto.metadata_props.add(key="author", value="/home/someone")
    path = _renamed(tmp_path / "theirs", proto)
    adopted = adopt_onnx(path, tmp_path / "ours")
    assert [p.name for p in adopted.weight_files()] == ["model.onnx"]
    assert b"/home/someone" not in adopted.path.read_bytes()
    np.testing.assert_array_equal(
        open_run(adopted)(TOKENS)["logits"], open_run(source)(TOKENS)["logits"]
    )


def test_adopting_raises_an_old_opset(tmp_path: Path) -> None:
    source = small(tmp_path / "source")
    proto = onnx.load(source.path)
    del proto.opset_import[:]
    proto.opset_import.append(onnx.helper.make_opsetid("", 11))
    proto.ir_version = 6
    adopted = adopt_onnx(_renamed(tmp_path / "old", proto), tmp_path / "ours")
    assert onnx.load(adopted.path).opset_import[0].version >= 13
    np.testing.assert_array_equal(
        open_run(adopted)(TOKENS)["logits"], open_run(source)(TOKENS)["logits"]
    )


def test_adopting_takes_the_genai_configuration_along(
    exported: Callable[[str], Exported], tmp_path: Path
) -> None:
    built = exported("qwen3").model
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "decoder.onnx").write_bytes(built.path.read_bytes())
    configuration = (built.directory / "genai_config.json").read_text()
    (theirs / "genai_config.json").write_text(configuration.replace("model.onnx", "decoder.onnx"))
    (theirs / "tokenizer.json").write_bytes((built.directory / "tokenizer.json").read_bytes())
    adopted = adopt_onnx(theirs / "decoder.onnx", tmp_path / "ours")
    assert adopted.genai
    assert '"model.onnx"' in (adopted.directory / "genai_config.json").read_text()
    feeds = {"input_ids": np.array([[5, 6, 7]])}
    np.testing.assert_array_equal(
        open_run(adopted)(feeds)["logits"], open_run(built)(feeds)["logits"]
    )
    (theirs / "genai_config.json").write_text("{}")
    with pytest.raises(ModelError, match="must describe a decoder"):
        adopt_onnx(theirs / "decoder.onnx", tmp_path / "broken")


def test_fusions_that_do_not_occur_are_not_timed(tmp_path: Path) -> None:
    model = small(tmp_path)
    write_session(model, ("SkipLayerNormFusion",))
    choice = choose_fusions(model, TOKENS)
    assert (choice.disabled_optimizers, choice.tried, choice.rounds) == ((), None, 0)
    assert read_session(model) == ()


def test_what_was_chosen_is_what_ships(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    source = exported("vit").model
    model = save_graph(onnx_ir.load(source.path), tmp_path)
    feeds = {"pixel_values": np.ones((1, 3, 16, 16), np.float32)}
    choice = choose_fusions(model, feeds)
    assert choice.tried == "SkipLayerNormFusion"
    assert choice.rounds >= 11
    assert read_session(model) == choice.disabled_optimizers
    write_session(model, ("SkipLayerNormFusion",))
    assert "SkipLayerNormalization" in audit(source).op_counts
    assert "SkipLayerNormalization" not in audit(model).op_counts


@pytest.mark.parametrize(
    ("ratios", "faster"),
    [
        ([0.8, 0.82, 0.79, 0.81, 0.83], True),
        ([0.99, 0.98, 0.99, 0.98, 0.99], False),  # too little
        ([0.7, 1.2, 0.7, 1.3, 0.7], False),  # too unsteady
        ([1.2, 1.2, 1.1, 1.2, 1.2], False),
    ],
)
def test_a_fusion_goes_only_for_a_clear_gain(ratios: list[float], faster: bool) -> None:
    assert clearly_faster(np.asarray(ratios)) is faster


def test_quiet_hushes_one_thread_and_keeps_what_it_said(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stdout", terminal)
    with quiet() as captured:
        print("inner")
        warnings.warn("loud", stacklevel=1)
        bar = threading.Thread(target=lambda: print("bar"))
        bar.start()
        bar.join()
    print("after")
    assert terminal.getvalue() == "bar\nafter\n"
    assert captured.tail() == "inner"
