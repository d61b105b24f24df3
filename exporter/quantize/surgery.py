"""Change graphs: new constants, and new nodes in the place of old ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONTRIB = "com.microsoft"


def constant(graph: Any, name: str, array: NDArray[Any]) -> Any:
    """The initializer `name` of an onnx_ir.Model's main graph, made on first use."""
    import onnx_ir as ir

    if name in graph.graph.initializers:
        return graph.graph.initializers[name]
    tensor = ir.tensor(np.asarray(array, order="C"), name=name)
    value = ir.Value(
        name=name,
        const_value=tensor,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(tensor.dtype),
    )
    graph.graph.register_initializer(value)
    return value


def node(
    op_type: str,
    inputs: Sequence[Any],
    name: str,
    *,
    domain: str = "",
    outputs: int = 1,
    **attributes: Any,
) -> Any:
    """A node whose outputs are named after it."""
    import onnx_ir as ir

    made = ir.node(op_type, list(inputs), attributes, domain=domain, num_outputs=outputs, name=name)
    for index, value in enumerate(made.outputs):
        value.name = f"{name}.{index}"
    return made


def insert_before(place: Any, nodes: Sequence[Any]) -> None:
    """Put nodes in front of `place`, in its graph."""
    place.graph.insert_before(place, list(nodes))


def replace(old: Sequence[Any], new: Sequence[Any], old_value: Any, new_value: Any) -> None:
    """Put `new` where the last of `old` is; `new_value` takes over the uses, name and type."""
    insert_before(old[-1], new)
    name = old_value.name
    old_value.name = f"{name}.replaced"
    new_value.name = name
    new_value.type, new_value.shape = old_value.type, old_value.shape
    old_value.replace_all_uses_with(new_value, replace_graph_outputs=True)
    for gone in reversed(old):
        gone.graph.remove(gone, safe=True)


def use_contrib(graph: Any) -> None:
    """Declare onnxruntime's own operators."""
    graph.graph.opset_imports[CONTRIB] = 1
