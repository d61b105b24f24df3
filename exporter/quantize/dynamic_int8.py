"""dynamic-int8: int8 weights, activations rounded to uint8 as they come.

No calibration, and the fastest kernels for whole prompts. One activation scale holds for a
whole tensor, so padding and batch mates change an answer a little; score without them.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from exporter.graph.model import OnnxModel
from exporter.quantize import QuantizeOptions, QuantizeResult
from exporter.quantize.linears import Linear, embeddings, float_products, linear_layers
from exporter.quantize.proof import linear_refusal, proven
from exporter.quantize.storage import read_graph, write_graph
from exporter.quantize.surgery import CONTRIB, insert_before, node, replace, use_contrib
from exporter.quantize.tables import quantize_table, tied_linear, worth_quantizing
from exporter.quantize.weights import int8_weight, stored_name

CALIBRATED = False


def applies(model: OnnxModel, task: str) -> str | None:
    """Graphs whose work is in linear layers."""
    return linear_refusal(model)


def quantize(model: OnnxModel, out: Path, options: QuantizeOptions) -> QuantizeResult:
    """Quantize linear layers and embedding tables; see `exporter.quantize.Scheme`."""
    graph = read_graph(model)
    linears = linear_layers(graph)
    tables = [e for e in embeddings(graph) if worth_quantizing(e)]
    kept = tuple(float_products(graph))
    use_contrib(graph)
    tied = {id(e): tied_linear(e, linears) for e in tables}
    as_rows = {linear.weight.key for linear in tied.values() if linear is not None}

    readers: defaultdict[int, list[Linear]] = defaultdict(list)
    for linear in linears:
        readers[id(linear.x)].append(linear)
    for group in readers.values():
        shared = _quantized_input(group) if len(group) > 1 else None
        for linear in group:
            weight = int8_weight(
                graph,
                linear,
                per_channel=options.per_channel,
                safe=options.reduce_range,
                as_rows=linear.weight.key in as_rows,
            )
            _replace(linear, weight.values, weight.scale, weight.nodes, shared)
    for table in tables:
        partner = tied[id(table)]
        quantize_table(
            graph,
            table,
            per_row=options.per_channel,
            safe=options.reduce_range,
            stored_name=stored_name(partner.weight) if partner is not None else None,
        )
    return proven(write_graph(graph, model, out), len(linears) + len(tables), kept)


def _quantized_input(group: list[Linear]) -> Any:
    """Round an input that several layers read (query, key, value) once, not once a layer."""
    rounded = node("DynamicQuantizeLinear", [group[0].x], f"{group[0].name}.input", outputs=3)
    insert_before(group[0].nodes[0], [rounded])
    return rounded


def _replace(linear: Linear, values: Any, scale: Any, before: list[Any], shared: Any) -> None:
    name = f"{linear.name}.int8"
    if shared is None:
        product = node(
            "DynamicQuantizeMatMul",
            [linear.x, values, scale, None, linear.bias],
            name,
            domain=CONTRIB,
        )
    else:
        x, x_scale, x_zero_point = shared.outputs
        product = node(
            "MatMulIntegerToFloat",
            [x, values, x_scale, scale, x_zero_point, None, linear.bias],
            name,
            domain=CONTRIB,
        )
    replace(linear.nodes, [*before, product], linear.output, product.outputs[0])
