"""From what an exporter made to the file we keep: one layout, nothing in it but the model.

Exporters note where each node came from (files of this machine, stack traces). That makes the
same weights differ between machines and is of no use to a device, so it goes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exporter.graph.model import MODEL_FILE, OnnxModel

# Above this the weights go to a file beside the graph; a protobuf message ends at 2 GiB.
INLINE_LIMIT_BYTES = 1 << 30
PRODUCER = "exporter"


def keep_outputs(model: Any, names: Sequence[str]) -> None:
    """Drop every other output of an onnx_ir model, and what only they needed."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    graph = model.graph
    kept = [value for value in graph.outputs if value.name in names]
    graph.outputs.clear()
    graph.outputs.extend(kept)
    RemoveUnusedNodesPass()(model)


def name_axes(model: Any, axes: Mapping[str, Mapping[int, str]]) -> None:
    """Give dynamic axes their names: input name -> axis -> name; other symbols follow."""
    from onnx_ir import Shape

    symbols: dict[str, str] = {}
    for value in model.graph.inputs:
        sizes = list(value.shape)
        for axis, name in axes.get(value.name, {}).items():
            if not isinstance(sizes[axis], int):
                symbols[str(sizes[axis].value)] = name
                sizes[axis] = name
        value.shape = Shape(sizes)

    def renamed(size: Any) -> Any:
        if isinstance(size, int):
            return size
        text = size.value
        return text and re.sub(r"\w+", lambda m: symbols.get(m.group(), m.group()), text)

    inputs = set(model.graph.inputs)
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value.shape is not None and value not in inputs:
                value.shape = Shape([renamed(size) for size in value.shape])


def split_gemms(model: Any) -> None:
    """Write each Gemm over a weight as MatMul and Add.

    Weight-only and dynamic quantizers know MatMul alone; onnxruntime joins the pair again
    where that is faster.
    """
    import onnx_ir as ir

    graph = model.graph
    for node in list(graph):
        if node.op_type != "Gemm" or node.domain not in ("", "ai.onnx"):
            continue
        weight = node.inputs[1].const_value
        plain = all(node.attributes.get_float(n, 1.0) == 1.0 for n in ("alpha", "beta"))
        if weight is None or not plain or node.attributes.get_int("transA", 0):
            continue
        factor = node.inputs[1]
        if node.attributes.get_int("transB", 0):
            name = f"{factor.name}.T"
            if name not in graph.initializers:
                turned = np.ascontiguousarray(weight.numpy().T)
                graph.initializers.add(
                    ir.Value(
                        name=name,
                        shape=ir.Shape(turned.shape),
                        type=ir.TensorType(weight.dtype),
                        const_value=ir.tensor(turned, name=name),
                    )
                )
            factor = graph.initializers[name]
        product = ir.node("MatMul", [node.inputs[0], factor], name=f"{node.name}_MatMul")
        last, added = product, [product]
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            last = ir.node("Add", [product.outputs[0], node.inputs[2]], name=f"{node.name}_Add")
            added.append(last)
        old, new = node.outputs[0], last.outputs[0]
        product.outputs[0].name = f"{old.name}_product"
        for value in {product.outputs[0], new}:
            value.shape, value.type = old.shape, old.type
        graph.insert_before(node, added)
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        new.name = old.name
    _drop_unused(graph)


def _drop_unused(graph: Any) -> None:
    for name in [n for n, value in graph.initializers.items() if not value.uses()]:
        if not graph.initializers[name].is_graph_output():
            del graph.initializers[name]


def strip(model: Any) -> None:
    """Remove documentation, metadata and the producer's version from an onnx_ir model."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    ClearMetadataAndDocStringPass()(model)
    model.doc_string = None
    model.metadata_props.clear()
    model.producer_name, model.producer_version = PRODUCER, None
    for graph in model.graphs():
        graph.doc_string = None
        graph.metadata_props.clear()
        values = [*graph.inputs, *graph.initializers.values()]
        for node in graph:
            node.doc_string = None
            node.metadata_props.clear()
            values.extend(node.outputs)
        for value in values:
            value.doc_string = None
            value.metadata_props.clear()
    for function in model.functions.values():
        function.doc_string = None
        function.metadata_props.clear()


def save_graph(model: Any, out: Path, *, inline_limit_bytes: int = INLINE_LIMIT_BYTES) -> OnnxModel:
    """Write an onnx_ir model as `model.onnx`, with `model.onnx.data` if it is large."""
    import onnx_ir as ir

    strip(model)
    out.mkdir(parents=True, exist_ok=True)
    weights = sum(
        value.const_value.nbytes
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    )
    if weights > inline_limit_bytes:
        ir.save(model, out / MODEL_FILE, external_data=f"{MODEL_FILE}.data")
    else:
        ir.save(ir.external_data.load_to_model(model), out / MODEL_FILE)
    return OnnxModel(out)
