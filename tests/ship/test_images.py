"""run.py prepares pictures exactly as the processors it replaces."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.graph.model import OnnxModel
from exporter.ship.bundle import assemble_model

Run = Callable[..., Any]

PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "square": ("ViTImageProcessor", {"size": {"height": 24, "width": 20}}),
    "no normalization": (
        "ViTImageProcessor",
        {"size": {"height": 16, "width": 16}, "do_normalize": False},
    ),
    "raw bytes": ("ViTImageProcessor", {"size": {"height": 8, "width": 8}, "do_rescale": False}),
    "shortest edge, crop": (
        "MobileNetV2ImageProcessor",
        {"size": {"shortest_edge": 30}, "crop_size": {"height": 25, "width": 28}},
    ),
    "crop larger than the image": (
        "MobileNetV2ImageProcessor",
        {"size": {"shortest_edge": 15}, "crop_size": {"height": 32, "width": 48}},
    ),
    "crop percentage": ("ConvNextImageProcessor", {"size": {"shortest_edge": 32}}),
    "warped": ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
    "blue first": (
        "MobileViTImageProcessor",
        {"size": {"shortest_edge": 20}, "crop_size": {"height": 18, "width": 18}},
    ),
}


@pytest.fixture
def mean_colour(tmp_path: Path) -> OnnxModel:
    """A graph over pictures of any size: logits are the mean of each channel."""
    import onnx
    from onnx import TensorProto, helper

    shape = ["batch", "channels", "height", "width"]
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["pixel_values", "axes"], ["logits"], keepdims=0)],
        "mean_colour",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "channels"])],
        [helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])],
    )
    opsets = [helper.make_opsetid("", 20)]
    directory = tmp_path / "graph"
    directory.mkdir()
    model = OnnxModel(directory)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(model.path))
    return model


def _ship(out: Path, model: OnnxModel, processor: Any, config: dict[str, Any]) -> tuple[str, ...]:
    files = out.parent / "files"
    files.mkdir()
    if isinstance(processor, dict):
        (files / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    elif processor is not None:
        processor.save_pretrained(files)
    out.mkdir()
    return assemble_model(
        out,
        model=model,
        task="image-classification",
        preprocessor_files=files,
        config=config,
        labels=["red", "green", "blue"],
    )


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", [(41, 67), (67, 40)], ids=["wide", "tall"])
def test_agrees_with_the_processor(
    name: str, size: tuple[int, int], mean_colour: OnnxModel, run_bare: Run, tmp_path: Path
) -> None:
    import transformers
    from PIL import Image

    kind, options = PROCESSORS[name]
    processor = getattr(transformers, kind)(**options)
    notes = _ship(tmp_path / "shipped", mean_colour, processor, {})
    assert notes == ()
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    picture = tmp_path / "noise.png"
    Image.fromarray(noise).save(picture)
    made = tmp_path / "made.npy"
    after = f"\nimport numpy\nnumpy.save({str(made)!r}, found['pixels']({str(picture)!r}))"
    done = run_bare(tmp_path / "shipped", str(picture), after=after)
    assert done.returncode == 0, done.stderr
    wanted = processor(images=[Image.fromarray(noise)], return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(np.load(made), wanted, atol=1e-5, rtol=1e-6)


def test_grey_pictures_for_one_channel(
    mean_colour: OnnxModel, run_bare: Run, tmp_path: Path
) -> None:
    from PIL import Image
    from transformers import ViTImageProcessor

    processor = ViTImageProcessor(
        size={"height": 12, "width": 12}, image_mean=[0.4], image_std=[0.3]
    )
    _ship(tmp_path / "shipped", mean_colour, processor, {"num_channels": 1})
    noise = np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8)
    picture = tmp_path / "noise.png"
    Image.fromarray(noise).save(picture)
    made = tmp_path / "made.npy"
    after = f"\nimport numpy\nnumpy.save({str(made)!r}, found['pixels']({str(picture)!r}))"
    done = run_bare(tmp_path / "shipped", str(picture), after=after)
    assert done.returncode == 0, done.stderr
    grey = Image.fromarray(noise).convert("L")
    wanted = processor(images=[grey], return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(np.load(made), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("processor", "said"),
    [
        (None, "without an image processor"),
        ({"image_processor_type": "LevitImageProcessor", "do_resize": True}, "Levit"),
        ({"image_processor_type": "ViTImageProcessor", "do_pad": True}, "do_pad"),
    ],
)
def test_unknown_steps_are_said_and_arrays_run_instead(
    processor: Any, said: str, mean_colour: OnnxModel, run_bare: Run, tmp_path: Path
) -> None:
    notes = _ship(tmp_path / "shipped", mean_colour, processor, {})
    assert len(notes) == 1
    assert said in notes[0]
    pixels = np.zeros((2, 3, 4, 4), np.float32)
    pixels[0, 1], pixels[1, 2] = 1, 1
    np.savez(tmp_path / "inputs.npz", pixel_values=pixels)
    done = run_bare(
        tmp_path / "shipped", str(tmp_path / "inputs.npz"), str(tmp_path / "outputs.npz")
    )
    assert done.returncode == 0, done.stderr
    assert "label: green blue" in done.stdout
    with np.load(tmp_path / "outputs.npz") as outputs:
        np.testing.assert_array_equal(outputs["logits"], [[0, 1, 0], [0, 0, 1]])
    usage = run_bare(tmp_path / "shipped")
    assert "pixel_values" in usage.stderr
