"""Ranges of activations, from calibration examples run through the float graph.

Only each tensor's smallest and largest value leave the session, one feed at a time: memory
does not grow with the examples. Minimum and maximum are taken as they are; clipping ranges by
percentile or entropy has ruined transformers (onnxruntime#10571) and wanted hundreds of GB
(onnxruntime#10503).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporter.errors import QuantizeError
from exporter.graph.model import OnnxModel
from exporter.graph.session import open_run
from exporter.graph.tidy import save_graph
from exporter.models.examples import Calibration, Examples
from exporter.quantize.integers import MIN_SCALE
from exporter.quantize.storage import read_graph
from exporter.quantize.surgery import node


@dataclass(frozen=True)
class Range:
    """Smallest and largest value of an activation, zero always between them."""

    low: float
    high: float

    @property
    def scale(self) -> np.float32:
        """Step of the uint8 levels that cover the range."""
        return np.float32(max((self.high - self.low) / 255, float(MIN_SCALE)))

    @property
    def zero_point(self) -> np.uint8:
        """The level that is exactly zero."""
        return np.uint8(np.clip(np.rint(-self.low / float(self.scale)), 0, 255))


def activation_ranges(
    model: OnnxModel, names: Sequence[str], examples: Examples[Calibration], *, threads: int
) -> dict[str, Range]:
    """The range of each float value called in `names` over all examples, unpadded.

    Raises:
        DataError: the examples are of another split.
        QuantizeError: there are none, or an activation is NaN or inf.
    """
    examples.require(Calibration)
    wanted = sorted(set(names))
    if not examples.feeds:
        raise QuantizeError(f"{model.path}: static ranges need at least one calibration example")
    with tempfile.TemporaryDirectory() as scratch:
        watched = _watched(model, wanted, Path(scratch))
        run = open_run(watched, threads=threads)
        low = np.zeros(len(wanted))
        high = np.zeros(len(wanted))
        for batch in examples.batches(1):
            seen = run(batch.feeds)
            low = np.minimum(low, [seen[f"calibrate.low.{i}"] for i in range(len(wanted))])
            high = np.maximum(high, [seen[f"calibrate.high.{i}"] for i in range(len(wanted))])
    for name, least, most in zip(wanted, low, high, strict=True):
        if not (np.isfinite(least) and np.isfinite(most)):
            raise QuantizeError(f"{model.path}: the activation {name} is NaN or inf on real inputs")
    return {n: Range(float(a), float(b)) for n, a, b in zip(wanted, low, high, strict=True)}


def _watched(model: OnnxModel, names: Sequence[str], directory: Path) -> OnnxModel:
    """The graph with two scalars a watched value as its only outputs."""
    import onnx_ir as ir

    graph = read_graph(model)
    values: dict[str, Any] = {value.name: value for value in graph.graph.inputs}
    for made in graph.graph.all_nodes():
        values.update({value.name: value for value in made.outputs})
    graph.graph.outputs.clear()
    for index, name in enumerate(names):
        for label, op_type in (("low", "ReduceMin"), ("high", "ReduceMax")):
            reduced = node(op_type, [values[name]], f"calibrate.{label}.{index}", keepdims=0)
            value = reduced.outputs[0]
            value.name = f"calibrate.{label}.{index}"
            value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(())
            graph.graph.append(reduced)
            graph.graph.outputs.append(value)
    return save_graph(graph, directory)
