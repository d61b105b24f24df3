"""Quantization-aware training from a recipe to an artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from pydantic import ValidationError

import exporter
from exporter.quantize.calibrate import Range
from exporter.recipe import Candidate, FineTune
from tests import chain, tiny

AWARE: dict[str, Any] = {
    "steps": 6,
    "batch_size": 8,
    "evaluate_every": 3,
    "learning_rate": 1e-3,
    "train_reference": False,
    "quantize_aware": True,
}


def test_a_recipe_trains_for_its_own_quantization(tmp_path: Path) -> None:
    """Fixed ranges come from training, and zeros that rise meanwhile are all there."""
    recipe = {
        "calibration_examples": 16,
        "candidates": [
            {
                "name": "aware",
                "quantization": "static-int8",
                "pruning": {
                    "sparsity": 0.5,
                    "sparsity_schedule": "cubic",
                    "criterion": "magnitude",
                },
                "fine_tune": AWARE,
            }
        ],
    }
    result = exporter.export(
        tiny.checkpoint("bert", tmp_path / "bert"),
        data=chain.text_data(tmp_path / "rows.jsonl"),
        target=chain.quick_target(recipe=recipe),
        out=tmp_path / "out",
        cache=tmp_path / "cache",
    )
    (row,) = result.report.candidates
    assert row.status == "chosen", row.reason
    recovery = result.report.recovery or {}
    assert recovery["quantize_aware"] == "static-int8"
    assert recovery["sparsity"] == pytest.approx(0.5, abs=0.001)
    assert recovery["best_step"] >= 4
    # The ranges that were trained are those of the file that ships, not those of calibration.
    (facts,) = (tmp_path / "cache" / "fine-tuned").glob("*/facts.json")
    ranges = _trained_scales(facts)
    scales = _scales(next(result.directory.rglob("model.onnx")))
    assert ranges
    assert all(any(abs(r - s) < 1e-9 for s in scales) for r in ranges)


def _trained_scales(facts: Path) -> set[float]:
    told = json.loads(facts.read_text(encoding="utf-8"))["ranges"]
    return {float(Range(one["low"], one["high"]).scale) for one in told}


def _scales(model: Path) -> list[float]:
    graph = onnx.load(model).graph
    return [
        float(onnx.numpy_helper.to_array(t))
        for t in graph.initializer
        if t.name.endswith(".scale") and not t.dims
    ]


@pytest.mark.parametrize("scheme", ["none", "float16"])
def test_schemes_that_training_cannot_round_as_are_refused(scheme: str) -> None:
    with pytest.raises(ValidationError, match="quantize_aware cannot train for"):
        Candidate(name="a", quantization=scheme, fine_tune=FineTune(quantize_aware=True))
