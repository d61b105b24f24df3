"""Convolutional regions as QDQ: values between their operators stay uint8.

Around each operator DequantizeLinear in front and QuantizeLinear behind; onnxruntime turns each
such group into one integer kernel (QLinearConv, QLinearAdd ...). Activations uint8 and weights
int8: on x86 the other combinations are slower than float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from exporter.quantize.calibrate import Range
from exporter.quantize.integers import Symmetric, symmetric
from exporter.quantize.linears import is_float_constant
from exporter.quantize.surgery import constant, insert_before, node

# Arithmetic between convolutions that has an integer kernel of its own.
_ARITHMETIC = frozenset(
    {"Add", "AveragePool", "Concat", "GlobalAveragePool", "LeakyRelu", "Mul", "Sigmoid"}
)
# Their output is some of their input's values: both must have one scale.
_SELECTION = frozenset({"MaxPool"})
# Clips that a uint8 range already does when its low end is zero.
_CLIPS = frozenset({"Clip", "Relu"})
_MAX_BIAS = 2.0**30


@dataclass(frozen=True)
class Region:
    """Operators to quantize.

    Attributes:
        convolutions: Conv nodes with a constant weight.
        others: operators that only see values which are quantized anyway.
        clips: Relu and Clip nodes that vanish into the operator before.
    """

    convolutions: tuple[Any, ...]
    others: tuple[Any, ...]
    clips: tuple[Any, ...]

    def values(self) -> list[Any]:
        """Values that become uint8, in graph order, without repeats."""
        clipped = {id(clip.inputs[0]): clip.outputs[0] for clip in self.clips}
        found: dict[int, Any] = {}
        for member in (*self.convolutions, *self.others):
            for value in (*_activations(member), member.outputs[0]):
                value = clipped.get(id(value), value)
                found[id(value)] = value
        return list(found.values())

    def range_source(self, value: Any) -> Any:
        """The value whose range holds for `value`: a selection has its input's."""
        producer = value.producer()
        while producer is not None and producer.op_type in _SELECTION:
            value = producer.inputs[0]
            producer = value.producer()
        return value


def find_region(graph: Any) -> Region:
    """Convolutions of an onnx_ir.Model and the operators that stay integer between them."""
    convolutions, others, clips = [], [], []
    inside: set[int] = set()  # values that are uint8 after the pass
    for member in graph.graph.all_nodes():
        if member.domain:
            continue
        output = member.outputs[0] if member.outputs else None
        if member.op_type == "Conv" and is_float_constant(member.inputs[1]):
            convolutions.append(member)
        elif member.op_type in _CLIPS and id(member.inputs[0]) in inside and _alone(member):
            clips.append(member)
        elif member.op_type in _ARITHMETIC | _SELECTION and all(
            id(value) in inside for value in _activations(member)
        ):
            others.append(member)
        else:
            continue
        inside.add(id(output))
    return Region(tuple(convolutions), tuple(others), tuple(clips))


def quantize_region(
    graph: Any, region: Region, ranges: dict[str, Range], *, per_channel: bool, safe: bool
) -> None:
    """Put QuantizeLinear and DequantizeLinear around every operator of the region.

    Args:
        ranges: by name, for `region.range_source` of each of `region.values()`.
        per_channel: one weight scale an output channel.
        safe: no pair of products may saturate int16.
    """
    # A round trip through uint8 behind every value, read by members and strangers alike:
    # onnxruntime drops the pairs that meet.
    spans = [(value, ranges[region.range_source(value).name]) for value in region.values()]
    for value, span in spans:
        _round_trip(graph, value, span)
    for convolution in region.convolutions:
        pair = convolution.inputs[0].producer()
        _quantize_weight(graph, convolution, pair, per_channel=per_channel, safe=safe)


def _round_trip(graph: Any, value: Any, span: Range) -> None:
    uses = list(value.uses())
    scale = constant(graph, f"{value.name}.scale", np.asarray(span.scale))
    zero_point = constant(graph, f"{value.name}.zero_point", np.asarray(span.zero_point))
    down = node("QuantizeLinear", [value, scale, zero_point], f"{value.name}.quantize")
    up = node("DequantizeLinear", [down.outputs[0], scale, zero_point], f"{value.name}.dequantize")
    up.outputs[0].type, up.outputs[0].shape = value.type, value.shape
    producer = value.producer()
    if producer is None:
        insert_before(uses[0][0], [down, up])
    else:
        producer.graph.insert_after(producer, [down, up])
    for consumer, index in uses:
        consumer.replace_input_with(index, up.outputs[0])
    if value.is_graph_output():
        name = value.name
        value.name, up.outputs[0].name = f"{name}.float", name
        outputs = value.graph.outputs
        outputs[outputs.index(value)] = up.outputs[0]


def _quantize_weight(
    graph: Any, convolution: Any, pair: Any, *, per_channel: bool, safe: bool
) -> None:
    source = convolution.inputs[1]
    weight = source.const_value.numpy().astype(np.float32)  # (out, in / groups, *kernel)
    bias = convolution.inputs[2] if len(convolution.inputs) > 2 else None
    x_scale = float(pair.inputs[1].const_value.numpy())
    quantized = symmetric(weight, axis=0 if per_channel else None, safe=safe)
    if bias is not None and is_float_constant(bias):
        offsets = bias.const_value.numpy().astype(np.float64)
        quantized = _room_for_bias(weight, quantized, offsets, x_scale)
    name = f"{convolution.outputs[0].name}.weight"
    axis: dict[str, Any] = {"axis": 0} if quantized.scale.ndim else {}
    scale = constant(graph, f"{name}.scale", quantized.scale)
    values = constant(graph, f"{name}.int8", quantized.values)
    up = node("DequantizeLinear", [values, scale], f"{name}.dequantize", **axis)
    nodes = [up]
    convolution.replace_input_with(1, up.outputs[0])
    if bias is not None and is_float_constant(bias):
        step = quantized.scale.astype(np.float64) * x_scale
        whole = np.rint(offsets / step).astype(np.int32)
        name = f"{convolution.outputs[0].name}.bias"
        bias_up = node(
            "DequantizeLinear",
            [
                constant(graph, f"{name}.int32", whole),
                constant(graph, f"{name}.scale", step.astype(np.float32)),
            ],
            f"{name}.dequantize",
            **axis,
        )
        nodes.append(bias_up)
        convolution.replace_input_with(2, bias_up.outputs[0])
    insert_before(convolution, nodes)


def _room_for_bias(weight: Any, quantized: Symmetric, offsets: Any, x_scale: float) -> Symmetric:
    """Coarser scales where a bias in steps of weight scale × input scale would leave int32."""
    least = np.abs(offsets) / (_MAX_BIAS * x_scale)
    if not quantized.scale.ndim:
        least = least.max(initial=0)
    scale = np.maximum(quantized.scale, least).astype(np.float32)
    if np.array_equal(scale, quantized.scale):
        return quantized
    shape = (-1,) + (1,) * (weight.ndim - 1) if scale.ndim else ()
    values = np.rint(weight / scale.reshape(shape)).astype(np.int8)
    return Symmetric(values, scale)


def _activations(member: Any) -> list[Any]:
    return [member.inputs[0]] if member.op_type == "Conv" else list(member.inputs)


def _alone(clip: Any) -> bool:
    """True when the clip sees all that leaves the operator before it, and clips at zero."""
    value = clip.inputs[0]
    if len(value.uses()) != 1 or value.is_graph_output() or value.producer() is None:
        return False
    if value.producer().op_type not in ("Conv", "Add"):
        return False
    if clip.op_type == "Relu":
        return True
    low = clip.inputs[1] if len(clip.inputs) > 1 else None
    return low is not None and low.const_value is not None and float(low.const_value.numpy()) == 0
