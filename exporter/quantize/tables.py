"""Embedding tables as int8 rows, and the output layer that shares their weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from exporter.quantize.integers import symmetric
from exporter.quantize.linears import Embedding, Linear, node_name
from exporter.quantize.surgery import constant, node, replace

# Smaller tables (token types, special positions) cost nothing and stay exact.
MIN_TABLE_ELEMENTS = 1024


def worth_quantizing(embedding: Embedding) -> bool:
    """True for tables that count in the size, looked up by something that varies."""
    return (
        embedding.indices.const_value is None
        and embedding.table.source.const_value.size >= MIN_TABLE_ELEMENTS
    )


def tied_linear(embedding: Embedding, linears: Sequence[Linear]) -> Linear | None:
    """The linear layer that multiplies with the table's transpose, or None.

    Exporters may store the two as one initializer and a Transpose, or twice.
    """
    table = embedding.table
    rows, width = _shape(table)
    for linear in linears:
        if linear.weight.key == (table.key[0], not table.key[1]):
            return linear
        if _shape(linear.weight) == (width, rows) and np.array_equal(
            linear.weight.array(), table.array().T
        ):
            return linear
    return None


def quantize_table(
    graph: Any, embedding: Embedding, *, per_row: bool, safe: bool, stored_name: str | None = None
) -> None:
    """Look rows up as int8 and scale them after: `float(rows[i]) * scale[i]`.

    Args:
        graph: the onnx_ir.Model.
        per_row: one scale a row; else one for the table.
        safe: no pair of products may saturate int16.
        stored_name: base name of constants that are there already (a tied layer's).
    """
    name = stored_name or f"{embedding.table.source.name}.rows"
    quantized = symmetric(embedding.table.array(), axis=0 if per_row else None, safe=safe, inner=1)
    values = constant(graph, f"{name}.int8", quantized.values)
    scale = constant(
        graph, f"{name}.row_scale", quantized.scale[:, None] if per_row else quantized.scale
    )
    label = node_name(embedding.node)
    rows = node("Gather", [values, embedding.indices], f"{label}.rows", axis=0)
    floats = node("Cast", [rows.outputs[0]], f"{label}.float", to=1)
    nodes = [rows, floats]
    if per_row:
        picked = node("Gather", [scale, embedding.indices], f"{label}.scale", axis=0)
        nodes.append(picked)
        scale = picked.outputs[0]
    scaled = node("Mul", [floats.outputs[0], scale], f"{label}.scaled")
    replace([embedding.node], [*nodes, scaled], embedding.node.outputs[0], scaled.outputs[0])


def _shape(weight: Any) -> tuple[int, int]:
    first, second = weight.source.const_value.shape
    return (int(second), int(first)) if weight.transposed else (int(first), int(second))
