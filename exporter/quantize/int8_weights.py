"""int8-weights: 8-bit weights in blocks, activations float. The mild scheme for decoding."""

from __future__ import annotations

from pathlib import Path

from exporter.graph.model import OnnxModel
from exporter.quantize import QuantizeOptions, QuantizeResult
from exporter.quantize.blockwise import quantize_weights
from exporter.quantize.proof import linear_refusal

CALIBRATED = False


def applies(model: OnnxModel, task: str) -> str | None:
    """Graphs whose work is in linear layers."""
    return linear_refusal(model)


def quantize(model: OnnxModel, out: Path, options: QuantizeOptions) -> QuantizeResult:
    """Quantize linear layers and tables to 8 bits; see `exporter.quantize.Scheme`."""
    return quantize_weights(model, out, options, bits=8, table_bits=8)
