"""Weights as integers: the arithmetic of quantization, on arrays alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporter.graph.pairs import SAFE_PAIR, largest_pair

FULL_RANGE = 127
# Weights of at most so much cannot make a pair beyond SAFE_PAIR.
SAFE_RANGE = SAFE_PAIR // 2
# Below this a float32 scale would be subnormal, and its inverse infinite on some hardware.
MIN_SCALE = np.float32(2.0**-126)
# Columns are rounded a cache's worth at a time.
_CHUNK_ELEMENTS = 1 << 18
# Shares of a block's range that 4-bit rounding tries beside the whole.
NARROWER = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7)


@dataclass(frozen=True)
class Symmetric:
    """`weight ≈ values · scale`, zero exact.

    Attributes:
        values: int8, shape of the weight.
        scale: float32; one number an index of the kept axis, or a scalar.
    """

    values: NDArray[np.int8]
    scale: NDArray[np.float32]


@dataclass(frozen=True)
class Blocks:
    """`weight ≈ (values - zero_point) · scale` in blocks of the input axis, zero exact.

    Attributes:
        values: uint8 levels, (out, blocks, block_size); the last block is padded with zeros.
        scale: float32, (out, blocks).
        zero_point: uint8, (out, blocks).
        bits: 4 or 8.
    """

    values: NDArray[np.uint8]
    scale: NDArray[np.float32]
    zero_point: NDArray[np.uint8]
    bits: int

    @property
    def packed(self) -> NDArray[np.uint8]:
        """Levels as MatMulNBits wants them: (out, blocks, bytes), low half first."""
        return _packed(self.values, self.bits)

    @property
    def packed_zero_point(self) -> NDArray[np.uint8]:
        """Zero points as MatMulNBits wants them: (out, bytes), low half first."""
        return _packed(self.zero_point, self.bits)

    def dequantized(self) -> NDArray[np.float32]:
        """The weight again, (padded in, out)."""
        centred = self.values.astype(np.float32) - self.zero_point[..., None]
        restored = centred * self.scale[..., None]  # (out, blocks, block_size)
        return np.ascontiguousarray(restored.reshape(len(restored), -1).T)


def symmetric(
    weight: NDArray[np.float32], *, axis: int | None, safe: bool = False, inner: int | None = None
) -> Symmetric:
    """Round a weight to int8 with one scale an index of `axis`, or one for all of it.

    Args:
        weight: any shape.
        axis: the axis that keeps its own scales; None for a single scale.
        safe: no pair of products may saturate int16. Only channels in which one could get a coarser
            scale, and that no coarser than needed.
        inner: the axis that a product sums over, two neighbours at a time; None: any two weights of
            a channel may meet.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis) if axis is not None else None
    peak = np.max(np.abs(weight), axis=others, keepdims=True, initial=0)
    limit = np.full(peak.shape, FULL_RANGE, np.float32)
    while True:
        scale = np.maximum(peak / limit, MIN_SCALE).astype(np.float32)
        values = np.clip(np.rint(weight / scale), -limit, limit).astype(np.int8)
        pairs = largest_pair(values, axis=axis, inner=inner).reshape(peak.shape)
        beyond = pairs > SAFE_PAIR
        if not (safe and beyond.any()):
            break
        fitting = np.floor(limit[beyond] * SAFE_PAIR / pairs[beyond])
        limit[beyond] = np.clip(fitting, SAFE_RANGE, limit[beyond] - 1)
    return Symmetric(values, scale.reshape(-1) if axis is not None else scale.reshape(()))


def blocks(weight: NDArray[np.float32], *, block_size: int, bits: int) -> Blocks:
    """Round a weight to unsigned levels, each block of the input axis with scale and zero point.

    With 4 bits a block's range is also tried narrower, and the range with the least squared
    error kept: cutting one outlier short can make fifteen others finer.

    Args:
        weight: (in, out).
        block_size: inputs that share a scale.
        bits: 4 or 8.
    """
    inputs, outputs = weight.shape
    step = max(1, _CHUNK_ELEMENTS // max(inputs, 1))
    parts = [
        _closest(_cut(weight[:, start : start + step], block_size), bits)
        for start in range(0, outputs, step)
    ]
    return Blocks(
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.scale for part in parts]),
        np.concatenate([part.zero_point for part in parts]),
        bits,
    )


def _cut(weight: NDArray[np.float32], block_size: int) -> NDArray[np.float32]:
    """(in, out) as (out, blocks, block_size), the last block padded with zeros."""
    inputs, outputs = weight.shape
    count = -(-inputs // block_size)
    padded = np.zeros((outputs, count * block_size), np.float32)
    padded[:, :inputs] = weight.T
    return padded.reshape(outputs, count, block_size)


def _closest(cut: NDArray[np.float32], bits: int) -> Blocks:
    """Blocks rounded over the range with the least squared error."""
    best = _rounded(cut, 1.0, bits)
    if bits == 4:
        least = _squared_error(cut, best)  # (out, blocks)
        for share in NARROWER:
            tried = _rounded(cut, share, bits)
            error = _squared_error(cut, tried)
            better = error < least
            least[better] = error[better]
            best.values[better] = tried.values[better]
            best.scale[better] = tried.scale[better]
            best.zero_point[better] = tried.zero_point[better]
    return best


def _rounded(cut: NDArray[np.float32], share: float, bits: int) -> Blocks:
    """Blocks (out, blocks, block_size) rounded over `share` of each block's range."""
    levels = 2**bits - 1
    low = np.minimum(cut.min(axis=2), 0) * np.float32(share)  # (out, blocks); zero lies inside
    high = np.maximum(cut.max(axis=2), 0) * np.float32(share)
    scale = np.maximum((high - low) / np.float32(levels), MIN_SCALE).astype(np.float32)
    zero_point = np.clip(np.rint(-low / scale), 0, levels).astype(np.float32)
    values = np.clip(np.rint(cut / scale[..., None] + zero_point[..., None]), 0, levels)
    return Blocks(values.astype(np.uint8), scale, zero_point.astype(np.uint8), bits)


def _squared_error(cut: NDArray[np.float32], made: Blocks) -> NDArray[np.float32]:
    centred = made.values.astype(np.float32) - made.zero_point[..., None]
    error = np.square(centred * made.scale[..., None] - cut).sum(axis=2)
    return np.asarray(error, np.float32)


def _packed(levels: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    if bits == 8:
        return levels
    if levels.shape[-1] % 2:
        padding = [(0, 0)] * (levels.ndim - 1) + [(0, 1)]
        levels = np.pad(levels, padding)
    return np.ascontiguousarray(levels[..., ::2] | (levels[..., 1::2] << 4))
