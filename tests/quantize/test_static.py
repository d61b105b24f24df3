"""static-int8: fixed ranges, and the kernels that must follow from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from exporter.errors import DataError, QuantizeError
from exporter.graph.model import OnnxModel
from exporter.graph.saturation import saturations
from exporter.graph.session import open_run, write_session
from exporter.models.examples import Feeds, Test
from exporter.quantize import QuantizeOptions, get_scheme
from exporter.quantize.calibrate import activation_ranges
from tests.quantize.conftest import image_examples, token_examples

STATIC = get_scheme("static-int8")


def with_loud_mate(feeds: Feeds) -> Feeds:
    """The same image beside one fifty times brighter."""
    image = feeds["pixel_values"]
    return {"pixel_values": np.concatenate([image, image * 50])}


def test_ranges_are_those_of_the_float_graph(encoder: OnnxModel) -> None:
    examples = token_examples()
    name = next(
        n.outputs[0].name for n in ir.load(encoder.path).graph if n.op_type == "LayerNormalization"
    )
    found = activation_ranges(encoder, [name], examples, threads=1)[name]
    few = activation_ranges(encoder, [name], examples.head(1), threads=1)[name]
    assert found.low <= few.low < 0 < few.high <= found.high
    assert found != few


def test_batch_mates_do_not_change_an_answer(
    convnet: OnnxModel, encoder: OnnxModel, tmp_path: Path
) -> None:
    images = STATIC.quantize(convnet, tmp_path / "c", QuantizeOptions(image_examples())).model
    run = open_run(images)
    feeds = next(image_examples().batches(1)).feeds
    alone = run(feeds)["logits"][0]
    np.testing.assert_allclose(run(with_loud_mate(feeds))["logits"][0], alone, atol=1e-5)

    texts = STATIC.quantize(encoder, tmp_path / "e", QuantizeOptions(token_examples())).model
    dynamic = get_scheme("dynamic-int8").quantize(encoder, tmp_path / "d", QuantizeOptions()).model
    moved = {}
    for name, model in (("static", texts), ("dynamic", dynamic)):
        run = open_run(model)
        first = run(next(token_examples().batches(1)).feeds)["logits"][0]
        together = run(next(token_examples().batches(8)).feeds)["logits"][0]
        moved[name] = float(np.abs(first - together).max())
    assert moved["static"] < 0.1 * moved["dynamic"]


def test_calibration_data_is_required_and_no_other_will_do(
    convnet: OnnxModel, tmp_path: Path
) -> None:
    with pytest.raises(QuantizeError, match="calibration"):
        STATIC.quantize(convnet, tmp_path / "a", QuantizeOptions())
    held_out = replace(image_examples(), role=Test)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="test split"):
        STATIC.quantize(convnet, tmp_path / "b", QuantizeOptions(held_out))
    with pytest.raises(QuantizeError, match="at least one"):
        STATIC.quantize(convnet, tmp_path / "c", QuantizeOptions(image_examples(0)))


def test_nan_activations_are_refused(convnet: OnnxModel, tmp_path: Path) -> None:
    broken = image_examples()
    broken.feeds[3]["pixel_values"][0, 0, 0] = np.nan
    with pytest.raises(QuantizeError, match="NaN"):
        STATIC.quantize(convnet, tmp_path / "out", QuantizeOptions(broken))


def test_kernels_that_do_not_appear_are_an_error(convnet: OnnxModel, tmp_path: Path) -> None:
    """Without its QDQ transformer onnxruntime runs the groups in float, and says nothing."""
    crippled = get_scheme("none").quantize(convnet, tmp_path / "source", QuantizeOptions()).model
    write_session(crippled, ("QDQSelectorActionTransformer",))
    with pytest.raises(QuantizeError, match=r"\d+ of \d+ planned integer kernels"):
        STATIC.quantize(crippled, tmp_path / "out", QuantizeOptions(image_examples()))


def test_reduced_range_keeps_weights_from_saturating(
    convnet: OnnxModel, encoder: OnnxModel, tmp_path: Path
) -> None:
    for model, examples in ((convnet, image_examples()), (encoder, token_examples())):
        out = tmp_path / model.directory.parent.name
        for safe in (True, False):
            options = QuantizeOptions(examples, reduce_range=safe)
            made = STATIC.quantize(model, out / str(safe), options).model
            risks, looked = saturations(made)
            assert looked >= 7
            assert bool(risks) is not safe, "; ".join(map(str, risks))


def test_a_scale_a_channel_is_closer(convnet: OnnxModel, tmp_path: Path) -> None:
    examples = image_examples()
    error = {}
    for per_channel in (True, False):
        options = QuantizeOptions(examples, per_channel=per_channel)
        model = STATIC.quantize(convnet, tmp_path / str(per_channel), options).model
        feeds = next(examples.batches(len(examples))).feeds
        gap = open_run(model)(feeds)["logits"] - open_run(convnet)(feeds)["logits"]
        error[per_channel] = float(np.square(gap).mean())
    assert error[True] < error[False]
