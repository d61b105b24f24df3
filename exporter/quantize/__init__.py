"""Quantize: ONNX in, smaller ONNX out. One scheme a file; a scheme's name is its file's name."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from exporter.compress.ranges import LearnedRange
from exporter.graph.model import OnnxModel
from exporter.models.examples import Calibration, Examples
from exporter.recipe import SCHEMES


@dataclass(frozen=True)
class QuantizeOptions:
    """What a scheme may use.

    Attributes:
        calibration: examples that set static ranges; None where there are none.
        reduce_range: keep int8 weights so small, where need be, that no CPU's int16 sums saturate.
        per_channel: one scale an output channel, not one a tensor.
        block_size: weights that share a scale in weight-only schemes: 16 to 256, a power of two.
        threads: cores that calibration may use.
        learned: static ranges from quantization-aware training; what they leave open is measured.
    """

    calibration: Examples[Calibration] | None = None
    reduce_range: bool = False
    per_channel: bool = True
    block_size: int = 32
    threads: int = 1
    learned: tuple[LearnedRange, ...] = ()


@dataclass(frozen=True)
class QuantizeResult:
    """What a scheme made.

    Attributes:
        model: the quantized model.
        planned: MatMul, Conv and Gather nodes that were meant to become integer.
        integer: integer kernels in the graph that onnxruntime makes of it.
        kept_float: names of nodes that keep a float weight.
        notes: lines that the reader of the report should see.
    """

    model: OnnxModel
    planned: int
    integer: int
    kept_float: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Scheme(Protocol):
    """A module of this package, listed in `exporter.recipe.SCHEMES`.

    Attributes:
        CALIBRATED: it reads calibration examples, so that others would make another model.
    """

    CALIBRATED: bool

    def applies(self, model: OnnxModel, task: str) -> str | None:
        """None when the scheme fits, else why it does not, as the user reads it."""

    def quantize(self, model: OnnxModel, out: Path, options: QuantizeOptions) -> QuantizeResult:
        """Write the quantized model into `out`, with everything that travels with `model`.

        Equal inputs give equal bytes.

        Raises:
            QuantizeError: a weight cannot be quantized, or the planned integer kernels do not
                appear in the graph that onnxruntime runs.
        """


def get_scheme(name: str) -> Scheme:
    """The scheme called `name`, such as "dynamic-int8"."""
    if name not in SCHEMES:
        raise ValueError(f"unknown scheme '{name}'; one of {', '.join(SCHEMES)}")
    return cast(Scheme, importlib.import_module(f"{__name__}.{name.replace('-', '_')}"))
