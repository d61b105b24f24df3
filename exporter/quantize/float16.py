"""float16: half the bytes, nearly the same numbers; integer kernels play no part.

CPUs without float16 arithmetic compute in float32 all the same: the gain is size, not speed.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from exporter.errors import ModelError, QuantizeError
from exporter.graph.audit import optimized
from exporter.graph.model import OnnxModel
from exporter.graph.quiet import quiet
from exporter.quantize import QuantizeOptions, QuantizeResult
from exporter.quantize.proof import refusal
from exporter.quantize.storage import read_graph, write_graph
from exporter.quantize.surgery import node

_LARGEST = 65504.0
# Exponentials, sums of squares and erf leave float16's range or precision, and onnxruntime has no
# float16 kernels for them on x86: it would take them apart into many small operators.
_KEEP_FLOAT = ("Gelu", "LayerNormalization", "Softmax", "SimplifiedLayerNormalization")

CALIBRATED = False


def applies(model: OnnxModel, task: str) -> str | None:
    """Every float32 graph."""
    return refusal(model)


def quantize(model: OnnxModel, out: Path, options: QuantizeOptions) -> QuantizeResult:
    """Convert weights and arithmetic, keep inputs and outputs float32; see `Scheme`."""
    import onnx_ir as ir
    from onnxconverter_common.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    graph = read_graph(model)
    _part_outputs(graph)
    # The converter retypes values without looking at the node that fixes their type.
    typed = [n.name for n in graph.graph.all_nodes() if _makes_float(n)]
    # A protobuf in memory may pass 2 GiB as long as nothing serializes it.
    graph = ir.external_data.load_to_model(graph)
    # It warns of every value beyond float16, and those are the -3.4e38 of attention masks.
    with quiet():
        half = convert_float_to_float16(
            ir.to_proto(graph),
            min_positive_val=0.0,
            max_finite_val=_LARGEST,
            keep_io_types=True,
            disable_shape_infer=True,
            op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_KEEP_FLOAT],
            node_block_list=typed,
        )
    result = write_graph(ir.from_proto(half), model, out)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            optimized(result, Path(scratch))
    except ModelError as error:
        raise QuantizeError(f"{model.path}: does not load as float16: {error.got}") from error
    return QuantizeResult(result, planned=0, integer=0)


def _part_outputs(graph: Any) -> None:
    """Give outputs that the graph reads itself, such as a cache, a name of their own.

    The converter turns an output back to float32 for all its readers, inner ones included.
    """
    for index, value in enumerate(graph.graph.outputs):
        if not value.uses():
            continue
        name = value.name
        value.name = f"{name}.inner"
        copied = node("Identity", [value], f"{name}.copy")
        copied.outputs[0].name = name
        copied.outputs[0].type, copied.outputs[0].shape = value.type, value.shape
        graph.graph.append(copied)
        graph.graph.outputs[index] = copied.outputs[0]


def _makes_float(made: Any) -> bool:
    """True for nodes whose attributes say float32: casts and constants of computed shape."""
    import onnx_ir as ir

    if made.op_type == "Cast":
        return bool(made.attributes["to"].value == ir.DataType.FLOAT)
    if made.op_type == "ConstantOfShape":
        value = made.attributes.get("value")
        return value is None or bool(value.value.dtype == ir.DataType.FLOAT)
    return made.op_type in ("EyeLike", "RandomNormal", "RandomUniform")
