"""What onnxruntime really runs: the operators of the graph after its own optimization.

A saved graph says what was planned. Whether a quantized MatMul became an integer kernel or
stayed float between DequantizeLinear nodes is decided when the session is made, so the audit
reads the optimized graph back.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.graph.model import OnnxModel
from exporter.graph.session import make_session, read_session, session_options

# Kernels that multiply integers, each standing for one planned MatMul, Gemm or Conv.
INTEGER_KERNELS = frozenset(
    {
        "ConvInteger",
        "ConvIntegerToFloat",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeMatMul",
        "GatherBlockQuantized",
        "MatMulInteger",
        "MatMulInteger16",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "QAttention",
        "QEmbedLayerNormalization",
        "QGemm",
        "QLinearConv",
        "QLinearMatMul",
        "QOrderedMatMul",
        "QMoE",
    }
)
# Float operators whose second input is a weight.
FLOAT_KERNELS = frozenset(
    {"Attention", "Conv", "FusedConv", "FusedGemm", "FusedMatMul", "Gemm", "MatMul"}
)

# Smaller constants are norms, biases and shapes.
SMALLEST_WEIGHT_BYTES = 2048


@dataclass(frozen=True)
class Layer:
    """A node with a weight, as it runs.

    Attributes:
        name: of the node, as the exporter named it.
        op: its operator after onnxruntime's optimization.
        format: of the weight: "float32", "float16", "int8", "int4" ...
        size_bytes: of all its constants.
    """

    name: str
    op: str
    format: str
    size_bytes: int


@dataclass(frozen=True)
class Audit:
    """The optimized graph in numbers.

    Attributes:
        layers: nodes with a weight worth naming, in the order they run.
        op_counts: nodes of each operator type, subgraphs included.
        integer_kernels: nodes that compute on integer weights.
        float_matmuls: names of nodes that multiply with a float weight.
        planned: nodes that were meant to become integer, None where nothing was planned.
    """

    op_counts: dict[str, int]
    integer_kernels: int
    float_matmuls: tuple[str, ...]
    planned: int | None
    layers: tuple[Layer, ...] = ()

    @property
    def missing(self) -> int:
        """Planned integer kernels that did not appear."""
        return max(0, (self.planned or 0) - self.integer_kernels)

    @property
    def kernels(self) -> tuple[str, ...]:
        """Operators with their counts, most frequent first, such as `MatMulNBits ×36`."""
        ranked = sorted(self.op_counts.items(), key=lambda item: (-item[1], item[0]))
        return tuple(f"{name} ×{count}" for name, count in ranked)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, for the report."""
        return {
            "op_counts": dict(sorted(self.op_counts.items())),
            "integer_kernels": self.integer_kernels,
            "float_matmuls": list(self.float_matmuls),
            "planned": self.planned,
        }


def audit(model: OnnxModel, planned: int | None = None) -> Audit:
    """Read the graph that onnxruntime makes of `model` on this machine.

    Raises:
        ModelError: onnxruntime refuses the file.
    """
    import onnx

    with tempfile.TemporaryDirectory() as scratch:
        graph = onnx.load(str(optimized(model, Path(scratch))), load_external_data=False).graph
    counts: Counter[str] = Counter()
    integer, floats, layers = 0, [], []
    sizes = {w.name: w for w in graph.initializer}
    for node, weights in _nodes(graph, {}):
        layer = _layer(node, sizes)
        if layer is not None:
            layers.append(layer)
        counts[node.op_type] += 1
        if node.op_type in INTEGER_KERNELS or _integer_gather(node, weights):
            integer += 1
        elif node.op_type in FLOAT_KERNELS and _weighted(node, weights):
            floats.append(node.name or node.output[0])
    return Audit(dict(sorted(counts.items())), integer, tuple(floats), planned, tuple(layers))


def _layer(node: Any, weights: dict[str, Any]) -> Layer | None:
    """The node as a layer, None when its constants are too small to be a weight."""
    from onnx import TensorProto, helper

    constants = [weights[name] for name in node.input if name in weights]
    if not constants:
        return None

    def size(tensor: Any) -> int:
        bits = 4 if tensor.data_type in (TensorProto.INT4, TensorProto.UINT4) else None
        each = bits or 8 * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
        return int(math.prod(tensor.dims)) * each // 8

    largest = max(constants, key=size)
    if size(largest) < SMALLEST_WEIGHT_BYTES:
        return None
    kind = TensorProto.DataType.Name(largest.data_type).lower()
    form = {"float": "float32", "uint8": "int8", "uint4": "int4"}.get(kind, kind)
    for attribute in node.attribute:
        if attribute.name == "bits" and node.op_type in ("MatMulNBits", "GatherBlockQuantized"):
            form = f"int{attribute.i}"
    return Layer(node.name or node.output[0], node.op_type, form, sum(map(size, constants)))


def optimized(model: OnnxModel, directory: Path) -> Path:
    """Write the graph that onnxruntime runs into `directory`; weights beside it.

    Raises:
        ModelError: onnxruntime refuses the file.
    """
    path = directory / "optimized.onnx"
    options = session_options(1)
    options.optimized_model_filepath = str(path)
    # Past 2 GB a protobuf cannot hold the weights.
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_file_name", f"{path.name}.data"
    )
    make_session(model.path, options, read_session(model))
    return path


def _nodes(graph: Any, outer: dict[str, int]) -> Iterator[tuple[Any, dict[str, int]]]:
    """Nodes of a graph and its subgraphs, each with the element types of visible constants."""
    weights = outer | {w.name: w.data_type for w in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            weights[node.output[0]] = max(a.t.data_type for a in node.attribute)
        elif node.op_type in ("Transpose", "DequantizeLinear", "Cast", "Reshape") and (
            node.input[0] in weights
        ):
            weights[node.output[0]] = 0  # still a constant; of which type decides its consumer
    for node in graph.node:
        yield node, weights
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs] if attribute.type in (5, 10) else []:
                yield from _nodes(inner, weights)


def _weighted(node: Any, weights: dict[str, int]) -> bool:
    """True when a factor is constant: activations times activations have no weight to quantize."""
    return any(name in weights for name in list(node.input)[:2])


def _integer_gather(node: Any, weights: dict[str, int]) -> bool:
    from onnx import TensorProto

    small = {TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4}
    return node.op_type == "Gather" and weights.get(node.input[0]) in small
