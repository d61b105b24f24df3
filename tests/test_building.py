"""What is built for a target holds on its weakest CPU."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter import building
from exporter.cache import Cache
from exporter.graph.model import OnnxModel
from exporter.graph.saturation import saturations
from exporter.models.examples import Calibration, Examples
from exporter.progress import Silent
from exporter.recipe import Candidate
from exporter.stages import Built, Prepared
from exporter.target import load_target

INPUTS, CLASSES = 64, 8
FEEDS = {"x": np.linspace(0, 1, INPUTS, dtype=np.float32)[None]}


def _heavy(directory: Path) -> OnnxModel:
    """x (batch, 64) -> logits (batch, 8); all weights equal, so that each rounds to the largest."""
    value = partial(helper.make_tensor_value_info, elem_type=TensorProto.FLOAT)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["logits"], "heavy")],
        "graph",
        [value("x", shape=["batch", INPUTS])],
        [value("logits", shape=["batch", CLASSES])],
        [numpy_helper.from_array(np.ones((INPUTS, CLASSES), np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    directory.mkdir()
    onnx.save(model, directory / "model.onnx")
    return OnnxModel(directory)


@pytest.mark.parametrize("scheme", ["dynamic-int8", "static-int8"])
@pytest.mark.parametrize("features", [("avx2",), ("avx2", "avx512", "avx512_vnni")])
def test_a_candidate_for_x86_without_vnni_cannot_saturate(
    scheme: str, features: tuple[str, ...], tmp_path: Path
) -> None:
    profile = load_target("cloud-cpu").model_dump() | {"features": features}
    target = type(load_target("cloud-cpu")).model_validate(profile)
    rows = tuple({"x": row} for row in np.random.default_rng(0).uniform(0, 1, (8, INPUTS)))
    feeds = tuple({"x": r["x"].astype(np.float32)} for r in rows)
    examples = Examples(
        Calibration, tuple(map(str, range(8))), feeds, tuple(range(8)), np.zeros(8, int), {}
    )
    context: Any = SimpleNamespace(
        target=target,
        recipe=target.recipe,
        cache=Cache(tmp_path / "cache"),
        progress=Silent(),
        stages={},
    )
    built = building.quantized(
        context,
        Built(_heavy(tmp_path / "float"), "heavy", {}),
        Candidate(name="int8", quantization=scheme),
        Prepared(examples, "calibration"),
        FEEDS,
    )
    risks, looked = saturations(built.model)
    assert looked == 1
    if target.int8_may_saturate:
        assert not risks
        assert built.facts["saturation_proven"] == 1
    else:  # full range is more exact, and VNNI adds in int32
        assert len(risks) == 1
        assert built.facts["saturation_proven"] is None
