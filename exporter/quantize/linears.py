"""Find what can be quantized in a graph: linear layers and embedding tables.

PyTorch's linear layers arrive as MatMul with a (in, out) weight, as MatMul of a transposed
(out, in) weight, or as Gemm; their bias as Gemm's third input or as an Add behind. A quantizer
sees one shape of all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Weight:
    """A constant matrix behind an initializer, perhaps through a Transpose.

    Attributes:
        source: the initializer.
        transposed: True when the matrix is the initializer's transpose.
    """

    source: Any
    transposed: bool

    @property
    def key(self) -> tuple[str, bool]:
        """Equal for equal matrices of one graph."""
        return str(self.source.name), self.transposed

    def array(self) -> NDArray[np.float32]:
        """The matrix as float32, read now."""
        array = self.source.const_value.numpy().astype(np.float32, copy=False)
        return np.ascontiguousarray(array.T if self.transposed else array)


@dataclass(frozen=True)
class Linear:
    """`output = x @ weight + bias`.

    Attributes:
        nodes: the node that multiplies and, when the bias came after, its Add.
        weight: (in, out).
        bias: a value of shape (out,), or None.
        output: the value that the last of `nodes` makes.
    """

    nodes: tuple[Any, ...]
    weight: Weight
    bias: Any | None
    output: Any

    @property
    def x(self) -> Any:
        """The input value, (..., in), as the graph is now: earlier layers may be replaced."""
        return self.nodes[0].inputs[0]

    @property
    def name(self) -> str:
        """The multiplying node's name, for reports."""
        return node_name(self.nodes[0])


@dataclass(frozen=True)
class Embedding:
    """`output = table[indices]` with a constant (rows, width) table."""

    node: Any
    table: Weight

    @property
    def indices(self) -> Any:
        """The value that picks rows."""
        return self.node.inputs[1]


def node_name(node: Any) -> str:
    """A node's name, or its output's where it has none."""
    return str(node.name or node.outputs[0].name)


def linear_layers(graph: Any) -> list[Linear]:
    """All linear layers of an onnx_ir.Model, subgraphs included, in graph order."""
    return list(_linears(graph.graph.all_nodes()))


def embeddings(graph: Any) -> list[Embedding]:
    """All embedding tables of an onnx_ir.Model, in graph order."""
    found = []
    for node in graph.graph.all_nodes():
        if node.op_type == "Gather" and not node.domain and _attribute(node, "axis", 0) == 0:
            table = constant_matrix(node.inputs[0])
            if table is not None:
                found.append(Embedding(node, table))
    return found


def float_products(graph: Any, but: Collection[int] = ()) -> list[str]:
    """Names of nodes that multiply with a constant float weight and are no linear layer.

    Args:
        but: identities of nodes to leave out.
    """
    known = {id(node) for linear in linear_layers(graph) for node in linear.nodes} | set(but)
    return [
        node_name(node)
        for node in graph.graph.all_nodes()
        if node.op_type in ("MatMul", "Gemm", "FusedMatMul", "Attention", "Conv", "ConvTranspose")
        and id(node) not in known
        and any(value is not None and is_float_constant(value) for value in node.inputs[:2])
    ]


def constant_matrix(value: Any) -> Weight | None:
    """The constant float matrix that `value` is, or None."""
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "Transpose":
        inner = constant_matrix(producer.inputs[0])
        permutation = _attribute(producer, "perm", [1, 0])
        if inner is None or list(permutation) != [1, 0]:
            return None
        return Weight(inner.source, not inner.transposed)
    if value is None or not is_float_constant(value) or len(value.const_value.shape) != 2:
        return None
    return Weight(value, False)


def is_float_constant(value: Any) -> bool:
    """True for an initializer of float32."""
    import onnx_ir as ir

    return value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT


def _linears(nodes: Iterable[Any]) -> Iterator[Linear]:
    for node in nodes:
        if node.domain or node.op_type not in ("MatMul", "Gemm"):
            continue
        weight = constant_matrix(node.inputs[1])
        if weight is None or constant_matrix(node.inputs[0]) is not None:
            continue
        output = node.outputs[0]
        if node.op_type == "Gemm":
            if _attribute(node, "transA", 0) or _attribute(node, "alpha", 1.0) != 1.0:
                continue
            if _attribute(node, "transB", 0):
                weight = Weight(weight.source, not weight.transposed)
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            if bias is not None and (
                _attribute(node, "beta", 1.0) != 1.0 or not _is_vector(bias, _columns(weight))
            ):
                continue
            yield Linear((node,), weight, bias, output)
            continue
        add, bias = _bias_behind(output, _columns(weight))
        if add is None:
            yield Linear((node,), weight, None, output)
        else:
            yield Linear((node, add), weight, bias, add.outputs[0])


def _bias_behind(output: Any, columns: int) -> tuple[Any | None, Any | None]:
    """The Add of a constant vector that alone consumes `output`, and that vector."""
    uses = output.uses()
    if output.is_graph_output() or len(uses) != 1:
        return None, None
    consumer, index = uses[0]
    if consumer.op_type != "Add" or consumer.graph is not output.producer().graph:
        return None, None
    other = consumer.inputs[1 - index]
    return (consumer, other) if _is_vector(other, columns) else (None, None)


def _columns(weight: Weight) -> int:
    return int(weight.source.const_value.shape[0 if weight.transposed else 1])


def _is_vector(value: Any, size: int) -> bool:
    return is_float_constant(value) and list(value.const_value.shape) == [size]


def _attribute(node: Any, name: str, default: Any) -> Any:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.value
