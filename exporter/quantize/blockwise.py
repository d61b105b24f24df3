"""Weight-only quantization in blocks: MatMulNBits for layers, GatherBlockQuantized for tables.

Activations stay float in the graph. `accuracy_level` 4 lets the kernel round them to int8 inside;
every other level of the 8-bit kernel is tens of times slower than float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from exporter.errors import QuantizeError
from exporter.graph.model import OnnxModel
from exporter.quantize import QuantizeOptions, QuantizeResult
from exporter.quantize.integers import Blocks, blocks
from exporter.quantize.linears import (
    Embedding,
    Linear,
    Weight,
    embeddings,
    float_products,
    linear_layers,
    node_name,
)
from exporter.quantize.proof import proven
from exporter.quantize.storage import read_graph, write_graph
from exporter.quantize.surgery import CONTRIB, constant, node, replace, use_contrib
from exporter.quantize.tables import tied_linear, worth_quantizing

ACCURACY_LEVEL = 4
MIN_BLOCK = 16


def quantize_weights(
    model: OnnxModel, out: Path, options: QuantizeOptions, *, bits: int, table_bits: int
) -> QuantizeResult:
    """Quantize linear layers to `bits`, tables and the layers that share them to `table_bits`.

    Raises:
        QuantizeError: a weight holds NaN or inf, or planned kernels do not appear.
    """
    graph = read_graph(model)
    linears = linear_layers(graph)
    tables = [e for e in embeddings(graph) if worth_quantizing(e)]
    kept = float_products(graph)
    use_contrib(graph)
    tied = {id(e): tied_linear(e, linears) for e in tables}
    shared = {linear.weight.key for linear in tied.values() if linear is not None}

    for linear in linears:
        width = table_bits if linear.weight.key in shared else bits
        _replace_linear(graph, linear, options.block_size, width)
    planned = len(linears)
    for table in tables:
        if _replace_table(graph, table, tied[id(table)], options.block_size, table_bits):
            planned += 1
        else:
            kept.append(node_name(table.node))
    return proven(write_graph(graph, model, out), planned, tuple(kept))


def fitting_block(width: int, block_size: int) -> int:
    """The largest power of two up to `block_size` that divides `width`, or `block_size`.

    A block that does not divide pads the last one of every row: bytes and work for zeros.
    """
    size = block_size
    while size > MIN_BLOCK and width % size:
        size //= 2
    return block_size if width % size else size


def _replace_linear(graph: Any, linear: Linear, block_size: int, bits: int) -> None:
    array = _finite(linear.weight)
    inputs, outputs = array.shape
    size = fitting_block(inputs, block_size)
    name = _stored_name(linear.weight, bits)
    quantized = blocks(array, block_size=size, bits=bits)
    product = node(
        "MatMulNBits",
        [
            linear.x,
            constant(graph, name, quantized.packed),
            constant(graph, f"{name}.scale", quantized.scale),
            constant(graph, f"{name}.zero_point", quantized.packed_zero_point),
            None,
            linear.bias,
        ],
        f"{linear.name}.int{bits}",
        domain=CONTRIB,
        K=inputs,
        N=outputs,
        bits=bits,
        block_size=size,
        accuracy_level=ACCURACY_LEVEL,
    )
    replace(linear.nodes, [product], linear.output, product.outputs[0])


def _replace_table(
    graph: Any, table: Embedding, tied: Linear | None, block_size: int, bits: int
) -> bool:
    """Look up quantized rows; False, and nothing done, where blocks do not fit the width."""
    array = _finite(table.table)  # (rows, width)
    width = array.shape[1]
    size = fitting_block(width, block_size)
    if width % size:
        return False
    before: list[Any] = []
    if tied is not None:
        name = _stored_name(tied.weight, bits)
        values, before = _flattened(graph, name, len(array))
    else:
        name = f"{_stored_name(table.table, bits)}.rows"
        quantized: Blocks = blocks(array.T, block_size=size, bits=bits)
        values = constant(graph, name, quantized.packed.reshape(len(array), -1))
        constant(graph, f"{name}.scale", quantized.scale)
        constant(graph, f"{name}.zero_point", quantized.packed_zero_point)
    constants = graph.graph.initializers
    rows = node(
        "GatherBlockQuantized",
        [values, table.indices, constants[f"{name}.scale"], constants[f"{name}.zero_point"]],
        f"{node_name(table.node)}.int{bits}",
        domain=CONTRIB,
        bits=bits,
        block_size=size,
        gather_axis=0,
        quantize_axis=1,
    )
    replace([table.node], [*before, rows], table.node.outputs[0], rows.outputs[0])
    return True


def _flattened(graph: Any, name: str, rows: int) -> tuple[Any, list[Any]]:
    """The layer's (out, blocks, bytes) as the table's (rows, bytes): same bytes, stored once."""
    shape = constant(graph, f"{name}.table_shape", np.array([rows, -1], np.int64))
    reshaped = node("Reshape", [graph.graph.initializers[name], shape], f"{name}.table")
    return reshaped.outputs[0], [reshaped]


def _stored_name(weight: Weight, bits: int) -> str:
    return f"{weight.source.name}{'.transposed' if weight.transposed else ''}.int{bits}"


def _finite(weight: Weight) -> Any:
    array = weight.array()
    if not np.isfinite(array).all():
        raise QuantizeError(
            f"{weight.source.name}: a weight that holds NaN or inf cannot be quantized"
        )
    return array
