"""Where an int8 model would answer otherwise on an x86 CPU without VNNI, operator by operator.

Read off the graph that onnxruntime really runs. A matrix product pairs neighbours along the axis it
sums over; what a convolution pairs depends on how it is unrolled, so any two weights of a channel
count there. The proof is about weights alone: it holds for whatever activations come.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporter.graph.audit import optimized
from exporter.graph.model import OnnxModel
from exporter.graph.pairs import SAFE_PAIR, largest_pair

# Operators of integer kernels and the inputs that hold their weights, (in, out) to multiply with.
# An LSTM has one for its input and one for its state, (directions, in, 4 · hidden) each.
PRODUCTS = {
    "DynamicQuantizeLSTM": (1, 2),
    "DynamicQuantizeMatMul": (1,),
    "MatMulInteger": (1,),
    "MatMulIntegerToFloat": (1,),
    "QAttention": (1,),
    "QGemm": (3,),
    "QLinearMatMul": (3,),
}
CONVOLUTIONS = {"ConvInteger": (1,), "ConvIntegerToFloat": (1,), "QLinearConv": (3,)}
NAMED = 12  # channels that a sentence names


@dataclass(frozen=True)
class Saturation:
    """One operator in which sums can saturate.

    Attributes:
        operator: the node's name.
        op_type: such as `MatMulIntegerToFloat`.
        channels: outputs in which a pair of products can.
        outputs: that the operator has.
        worst: the largest sum a pair can come to; int16 ends at 32,767.
    """

    operator: str
    op_type: str
    channels: tuple[int, ...]
    outputs: int
    worst: int

    def __str__(self) -> str:
        named = ", ".join(map(str, self.channels[:NAMED]))
        more = ", ..." if len(self.channels) > NAMED else ""
        return (
            f"{self.operator} ({self.op_type}): {len(self.channels)} of {self.outputs} channels "
            f"({named}{more}), up to {self.worst:,} of 32,767"
        )


def saturations(model: OnnxModel) -> tuple[tuple[Saturation, ...], int]:
    """Every weight of which a pair of products can saturate, and how many were looked at.

    Raises:
        ModelError: onnxruntime refuses the file.
    """
    import onnx

    with tempfile.TemporaryDirectory() as scratch:
        path = optimized(model, Path(scratch))
        graph = onnx.load(str(path), load_external_data=True).graph
    found, looked = [], 0
    for node, tensor in _weighted(graph, {}):
        if tensor.data_type != onnx.TensorProto.INT8:
            continue  # weights of uint8 take kernels that widen before they add
        looked += 1
        risk = _saturation(node, onnx.numpy_helper.to_array(tensor))
        if risk is not None:
            found.append(risk)
    return tuple(found), looked


def _weighted(graph: Any, outer: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Nodes of integer kernels, once for each constant weight, in a graph and its subgraphs."""
    weights = outer | {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for index in (PRODUCTS | CONVOLUTIONS).get(node.op_type, ()):
            if node.input[index] in weights:
                yield node, weights[node.input[index]]
        for attribute in node.attribute:
            inner = [attribute.g] if attribute.type == attribute.GRAPH else attribute.graphs
            for subgraph in inner:
                yield from _weighted(subgraph, weights)


def _saturation(node: Any, values: Any) -> Saturation | None:
    if node.op_type in CONVOLUTIONS:
        pairs = largest_pair(values, axis=0, inner=None)
    else:
        turned = any(a.name == "transB" and a.i for a in node.attribute)
        matrices = np.swapaxes(values, -1, -2) if turned else values  # (..., in, out)
        matrices = matrices.reshape(-1, *matrices.shape[-2:])
        pairs = np.max([largest_pair(m, axis=1, inner=0) for m in matrices], axis=0)
    channels = np.flatnonzero(pairs > SAFE_PAIR)
    if not len(channels):
        return None
    return Saturation(
        node.name or node.output[0],
        node.op_type,
        tuple(int(channel) for channel in channels),
        len(pairs),
        255 * int(pairs.max()),
    )
