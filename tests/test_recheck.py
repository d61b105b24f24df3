"""A check asks the model that ships, not what was written down about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

import exporter
from tests import chain
from tests.signed import fix_hashes


def _contrary(path: Path) -> None:
    """The same model, its logits negated: what was likeliest is now the least likely."""
    model = onnx.load(str(path))
    for node in model.graph.node:
        for i, name in enumerate(node.output):
            if name == "logits":
                node.output[i] = "logits-before"
    model.graph.node.append(onnx.helper.make_node("Neg", ["logits-before"], ["logits"], "contrary"))
    onnx.save(model, str(path))


def test_a_swapped_model_is_scored_anew(altered: Path, signed: dict[str, Any]) -> None:
    target = chain.quick_target(accuracy_drop_points=30.0)  # no latency to decide
    cache = signed["inputs"]["cache"]
    honest = exporter.check(altered, target=target, cache=cache)
    shipped = {j.metric: j.measured for j in signed["result"].judgements}
    assert honest.judgements[0].measured == shipped["accuracy_drop_points"]
    _contrary(altered / "model" / "model.onnx")
    fix_hashes(altered)
    swapped = exporter.check(altered, target=target, cache=cache)
    assert not [note for note in swapped.report.notes if "derived from the evidence" in note]
    (flips,) = (o for o in swapped.report.observations if o.title == "flips")
    assert flips.candidate == 1.0
    assert swapped.judgements[0].candidate != honest.judgements[0].candidate
    assert swapped.judgements[0].reference == honest.judgements[0].reference
