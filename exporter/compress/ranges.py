"""What training and quantization tell each other: how to round, and which ranges were learned."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.recipe import QUANTIZE_AWARE


@dataclass(frozen=True)
class Rounding:
    """What training rounds by.

    Attributes:
        scheme: one of `exporter.recipe.QUANTIZE_AWARE`.
        per_channel: one weight scale an output; else one a matrix.
        safe: no pair of products may saturate int16 (`QuantizeOptions.reduce_range`).
        block_size: weights that share a scale in weight-only schemes.
    """

    scheme: str
    per_channel: bool = True
    safe: bool = False
    block_size: int = 32

    def __post_init__(self) -> None:
        if self.scheme not in QUANTIZE_AWARE:
            raise ValueError(
                f"training cannot round as '{self.scheme}'; one of {', '.join(QUANTIZE_AWARE)}"
            )


@dataclass(frozen=True)
class LearnedRange:
    """The range of what enters a layer, as it was trained.

    Attributes:
        name: of the layer's weight in the checkpoint.
        weight: its fingerprint as (in, out): exporters rename and turn matrices.
        low, high: zero between them.
    """

    name: str
    weight: str
    low: float
    high: float


def weight_fingerprint(matrix: NDArray[Any]) -> str:
    """SHA-256 of a matrix as float32, (in, out), row by row."""
    array = np.ascontiguousarray(matrix, np.float32)
    return hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest()
