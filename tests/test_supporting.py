"""A profile that names its runtime and its format: what ships, what is refused, what is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import exporter
from exporter.artifact import load_artifact
from exporter.errors import ExporterError, ProfileError
from exporter.graph.ort_format import OPERATORS_FILE, ORT_FILE, operator_names
from exporter.graph.support import Need, Support
from exporter.supporting import fit_runtime
from exporter.target import load_target
from tests import chain, tiny
from tests.devices.graphs import product


def _export(family: str, root: Path, **changes: Any) -> exporter.Result:
    return exporter.export(
        tiny.checkpoint(family, root / family),
        data=chain.data_for(family, root),
        target=chain.quick_target(changes=changes, recipe=_recipe(family)),
        out=root / "out",
        cache=root / "cache",
    )


def _recipe(family: str) -> dict[str, Any]:
    if family == "bert":
        return {
            "calibration_examples": 16,
            "candidates": [
                {"name": "dynamic-int8", "quantization": "dynamic-int8"},
                {"name": "static-int8", "quantization": "static-int8"},
            ],
        }
    return {
        "calibration_examples": 16,
        "candidates": [{"name": "static-int8", "quantization": "static-int8"}],
    }


@pytest.mark.parametrize("family", ["bert", "mobilenetv2", "llama"])
def test_ort_format_ships_beside_the_model(family: str, tmp_path: Path) -> None:
    import onnxruntime

    if family == "llama":
        data, recipe = chain.text_data(tmp_path / "rows.jsonl", labels=False), None
        result = exporter.export(
            tiny.checkpoint(family, tmp_path / family),
            data=data,
            target=chain.quick_target(changes={"format": "ort"}, recipe=recipe),
            out=tmp_path / "out",
            cache=tmp_path / "cache",
        )
    else:
        result = _export(family, tmp_path, format="ort")
    assert not [row for row in result.report.candidates if row.status == "error"]
    artifact = load_artifact(result.directory)
    model = artifact.model_directory
    verified = exporter.verify(result.directory)
    assert verified.sound, verified.to_text()

    support = result.report.support
    assert support is not None
    ort = support["ort"]
    assert ort["platform"] == "arm"
    assert ort["size_bytes"] == (model / ORT_FILE).stat().st_size
    listed = operator_names((model / OPERATORS_FILE).read_text(encoding="utf-8"))
    assert len(listed) == ort["operators"] > 3
    assert str(tmp_path) not in (model / OPERATORS_FILE).read_text(encoding="utf-8")
    assert not [name for name in listed if "nchwc" in name]
    assert any("are the same model" in note for note in result.report.notes)
    session = onnxruntime.InferenceSession(
        str(model / ORT_FILE), providers=["CPUExecutionProvider"]
    )
    assert session.get_outputs()
    # size is that of model.onnx alone
    size = next(j for j in result.judgements if j.metric == "disk_size_ratio").candidate
    assert size is not None
    weights = sum(p.stat().st_size for p in model.glob("model.onnx*"))
    assert np.isclose(size * 2**20, weights)

    assert set(support["mobile"]) == {"nnapi", "coreml_neuralnetwork", "coreml_mlprogram"}
    for name in ("report.html", "report.md"):
        text = (result.directory / name).read_text(encoding="utf-8")
        assert "Runs where" in text
        assert "NNAPI" in text
        assert "no phone was asked" in text


def test_verify_notices_a_changed_or_missing_ort_file(tmp_path: Path) -> None:
    import json

    result = _export("mobilenetv2", tmp_path, format="ort")
    for name in (ORT_FILE, OPERATORS_FILE):
        path = result.directory / "model" / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        kept, _ = path.read_bytes(), path.write_bytes(bytes(data))
        assert f"model/{name}" in exporter.verify(result.directory).to_text()
        path.write_bytes(kept)
    assert exporter.verify(result.directory).sound

    # gone from the directory and from the manifest: the target's format still asks for it
    (result.directory / "model" / ORT_FILE).unlink()
    path = result.directory / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    del manifest["files"][f"model/{ORT_FILE}"]
    path.write_text(json.dumps(manifest), encoding="utf-8")
    told = exporter.verify(result.directory).to_text()
    assert f"must name model/{ORT_FILE}, which the target's format asks for" in told


def test_a_release_that_is_too_old_is_refused_by_name(tmp_path: Path) -> None:
    """The exporter writes IR version 10 and opset 20; 1.17 opens IR version 9 at most."""
    with pytest.raises(ProfileError) as caught:
        _export("bert", tmp_path, runtime_version="1.16.3")
    told = str(caught.value)
    assert told.startswith("target mobile: runtime_version must take this model")
    assert "graph: opset 20, which came with 1.17" in told
    assert "graph: IR version 10, which came with 1.18" in told
    assert told.endswith('got 1.16.3; set runtime_version = "1.18" or later.')
    assert not (tmp_path / "cache" / "quantized").exists()  # before a candidate is made


def test_a_release_that_takes_no_candidate_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As 4-bit weights of an older .onnx file, which is itself taken."""
    monkeypatch.setattr("exporter.pipeline.refuse_runtime", lambda target, reference: None)
    with pytest.raises(ProfileError) as caught:
        _export("bert", tmp_path, runtime_version="1.16.3")
    told = str(caught.value)
    assert told.startswith("target mobile: runtime_version must take a candidate of the recipe")
    assert "dynamic-int8: model.onnx: must run on onnxruntime 1.16.3" in told
    assert "another quantization" in told


def test_a_release_that_takes_it_is_told(tmp_path: Path) -> None:
    result = _export("bert", tmp_path, runtime_version="1.20")
    support = result.report.support
    assert support is not None
    assert support["runtime_version"] == "1.20"
    assert support["oldest"] == "1.18"
    assert support["ort"] is None
    assert not (result.directory / "model" / ORT_FILE).exists()
    assert "the profile names 1.20" in (result.directory / "report.html").read_text("utf-8")


def test_a_release_that_refuses_the_ort_file_alone_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optimizing writes operators of this machine's release into it."""
    model = product(tmp_path / "m", 8)
    later = Support({"ai.onnx": 17}, 10, (Need("com.microsoft:New", "operator", 26, "take onnx."),))
    monkeypatch.setattr("exporter.graph.support.examine_ort", lambda path: later)
    target = load_target("mobile").model_copy(update={"format": "ort", "runtime_version": "1.20"})
    with pytest.raises(ExporterError, match=r"model\.ort: must run on onnxruntime 1\.20"):
        fit_runtime(target, model, {"x": np.ones((1, 8), np.float32)}, exact=True)
