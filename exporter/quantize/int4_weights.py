"""int4-weights: asymmetric 4-bit weights in blocks, activations float. The smallest scheme.

Tables keep 8 bits, and with them an output layer that shares their weight: every token passes
there, rounding error is not averaged over an inner sum, and no fine layer comes after.
"""

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
    """Quantize linear layers to 4 bits, tables to 8; see `exporter.quantize.Scheme`."""
    return quantize_weights(model, out, options, bits=4, table_bits=8)
