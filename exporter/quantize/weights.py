"""The int8 weight of a linear layer as constants of the graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from exporter.errors import QuantizeError
from exporter.quantize.integers import symmetric
from exporter.quantize.linears import Linear, Weight
from exporter.quantize.surgery import constant, node


@dataclass(frozen=True)
class Int8Weight:
    """Values of the graph that hold `weight ≈ values · scale`.

    Attributes:
        values: int8, (in, out).
        scale: float32, (out,) or (1,).
        nodes: nodes to insert before the first use.
    """

    values: Any
    scale: Any
    nodes: list[Any]


def stored_name(weight: Weight) -> str:
    """Base name of a weight's constants; layers that share a weight share them."""
    return f"{weight.source.name}.transposed" if weight.transposed else str(weight.source.name)


def int8_weight(
    graph: Any, linear: Linear, *, per_channel: bool, safe: bool, as_rows: bool = False
) -> Int8Weight:
    """Quantize a linear layer's weight.

    Args:
        graph: the onnx_ir.Model.
        per_channel: one scale an output.
        safe: no pair of products may saturate int16.
        as_rows: store it (out, in), as the embedding table that shares it needs; onnxruntime
            folds the Transpose when it loads the graph.

    Raises:
        QuantizeError: the weight holds NaN or inf.
    """
    array = linear.weight.array()
    if not np.isfinite(array).all():
        raise QuantizeError(
            f"{linear.weight.source.name}: a weight that holds NaN or inf cannot be quantized"
        )
    quantized = symmetric(array, axis=1 if per_channel else None, safe=safe, inner=0)
    name = stored_name(linear.weight)
    scale = constant(graph, f"{name}.scale", quantized.scale.reshape(-1))
    if not as_rows:
        return Int8Weight(constant(graph, f"{name}.int8", quantized.values), scale, [])
    rows = constant(graph, f"{name}.int8", quantized.values.T)
    turned = node("Transpose", [rows], f"{linear.name}.columns", perm=[1, 0])
    return Int8Weight(turned.outputs[0], scale, [turned])
