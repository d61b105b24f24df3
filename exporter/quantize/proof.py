"""What every scheme must show: that it has work to do, and that its work arrived."""

from __future__ import annotations

from exporter.errors import QuantizeError
from exporter.graph.audit import INTEGER_KERNELS, audit
from exporter.graph.model import OnnxModel
from exporter.quantize import QuantizeResult
from exporter.quantize.linears import linear_layers
from exporter.quantize.storage import read_graph

# Per-axis DequantizeLinear came with it; exporters have written newer ones since 2021.
MIN_OPSET = 13
_QUANTIZED = INTEGER_KERNELS | {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}


def refusal(model: OnnxModel) -> str | None:
    """Why no scheme can quantize `model`, or None."""
    graph = read_graph(model)
    opset = graph.graph.opset_imports.get("", MIN_OPSET)
    if opset < MIN_OPSET:
        return f"the graph is of opset {opset}; quantized operators need {MIN_OPSET} or later"
    present = sorted({n.op_type for n in graph.graph.all_nodes()} & _QUANTIZED)
    if present:
        return f"the graph is quantized already ({', '.join(present)})"
    return None


def linear_refusal(model: OnnxModel) -> str | None:
    """Why a scheme for linear layers cannot quantize `model`, or None."""
    reason = refusal(model)
    if reason is not None:
        return reason
    graph = read_graph(model)
    linears = len(linear_layers(graph))
    convolutions = sum(n.op_type in ("Conv", "ConvTranspose") for n in graph.graph.all_nodes())
    if not linears:
        return "the graph has no linear layer with a constant weight"
    if convolutions > linears:
        return (
            f"the graph's work is in {convolutions} convolutions, against {linears} linear layers; "
            "static-int8 quantizes convolutions"
        )
    return None


def proven(
    model: OnnxModel, planned: int, kept_float: tuple[str, ...], notes: tuple[str, ...] = ()
) -> QuantizeResult:
    """The result, once onnxruntime's own graph shows every planned integer kernel.

    Raises:
        QuantizeError: kernels are missing.
    """
    found = audit(model, planned)
    if found.missing:
        floats = ", ".join(found.float_matmuls[:5]) or "none"
        raise QuantizeError(
            f"{model.path}: {found.missing} of {planned} planned integer kernels are not in the "
            f"graph that onnxruntime runs (float products with a weight: {floats})"
        )
    return QuantizeResult(model, planned, found.integer_kernels, kept_float, notes)
