"""static-int8: int8 weights, and uint8 activations with ranges fixed by calibration.

Convolutions and what lies between them become QDQ groups; linear layers read a rounded input
and write float, so attention, normalization and residual sums lose nothing. Ranges do not
depend on the batch: padding and batch mates leave an example's answer alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from exporter.errors import QuantizeError
from exporter.graph.model import OnnxModel
from exporter.quantize import QuantizeOptions, QuantizeResult
from exporter.quantize.calibrate import Range, activation_ranges
from exporter.quantize.convolutions import find_region, quantize_region
from exporter.quantize.learned import learned_ranges
from exporter.quantize.linears import Linear, embeddings, float_products, linear_layers
from exporter.quantize.proof import proven, refusal
from exporter.quantize.storage import read_graph, write_graph
from exporter.quantize.surgery import CONTRIB, constant, insert_before, node, replace, use_contrib
from exporter.quantize.tables import quantize_table, tied_linear, worth_quantizing
from exporter.quantize.weights import int8_weight, stored_name

CALIBRATED = True


def applies(model: OnnxModel, task: str) -> str | None:
    """Encoders and convolutional nets; language models keep dynamic ranges."""
    if task == "text-generation":
        return (
            "one fixed range an activation cannot hold a language model's outliers at every "
            "position; dynamic-int8 measures them as they come"
        )
    reason = refusal(model)
    if reason is not None:
        return reason
    graph = read_graph(model)
    if not linear_layers(graph) and not find_region(graph).convolutions:
        return "the graph has no linear layer and no convolution with a constant weight"
    return None


def quantize(model: OnnxModel, out: Path, options: QuantizeOptions) -> QuantizeResult:
    """Quantize convolutions, linear layers and tables; see `exporter.quantize.Scheme`."""
    if options.calibration is None:
        raise QuantizeError(f"{model.path}: static-int8 needs calibration examples")
    graph = read_graph(model)
    linears = linear_layers(graph)
    tables = [e for e in embeddings(graph) if worth_quantizing(e)]
    region = find_region(graph)
    convolutions = {id(c) for c in region.convolutions}
    kept = tuple(float_products(graph, but=convolutions))
    watched = [linear.x.name for linear in linears]
    watched += [region.range_source(value).name for value in region.values()]
    ranges = activation_ranges(model, watched, options.calibration, threads=options.threads)
    ranges |= learned_ranges(options.learned, linears, region)

    use_contrib(graph)
    tied = {id(e): tied_linear(e, linears) for e in tables}
    as_rows = {linear.weight.key for linear in tied.values() if linear is not None}
    rounded: dict[int, Any] = {}
    for linear in linears:
        if id(linear.x) not in rounded:
            rounded[id(linear.x)] = _rounded_input(graph, linear, ranges[linear.x.name])
        weight = int8_weight(
            graph,
            linear,
            per_channel=options.per_channel,
            safe=options.reduce_range,
            as_rows=linear.weight.key in as_rows,
        )
        x = rounded[id(linear.x)]
        product = node(
            "MatMulIntegerToFloat",
            [
                x.outputs[0],
                weight.values,
                x.inputs[1],
                weight.scale,
                x.inputs[2],
                None,
                linear.bias,
            ],
            f"{linear.name}.int8",
            domain=CONTRIB,
        )
        replace(linear.nodes, [*weight.nodes, product], linear.output, product.outputs[0])
    for table in tables:
        partner = tied[id(table)]
        quantize_table(
            graph,
            table,
            per_row=options.per_channel,
            safe=options.reduce_range,
            stored_name=stored_name(partner.weight) if partner is not None else None,
        )
    quantize_region(
        graph, region, ranges, per_channel=options.per_channel, safe=options.reduce_range
    )
    planned = len(linears) + len(tables) + len(region.convolutions)
    return proven(write_graph(graph, model, out), planned, kept)


def _rounded_input(graph: Any, linear: Linear, span: Range) -> Any:
    """One QuantizeLinear for all layers that read the same value."""
    name = linear.x.name
    scale = constant(graph, f"{name}.scale", np.asarray(span.scale))
    zero_point = constant(graph, f"{name}.zero_point", np.asarray(span.zero_point))
    down = node("QuantizeLinear", [linear.x, scale, zero_point], f"{name}.rounded")
    insert_before(linear.nodes[0], [down])
    return down
