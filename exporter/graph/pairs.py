"""Pairs of int8 weights: what x86 CPUs without VNNI can add without saturating.

Their kernels multiply uint8 activations with int8 weights and add two neighbouring products in
int16, which saturates (Intel's VPMADDUBSW). A pair of weights of one sign whose sum is at most 128
in size cannot reach the end: 255 · 128 = 32,640 ≤ 32,767.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SAFE_PAIR = 128


def largest_pair(
    values: NDArray[np.int8], *, axis: int | None, inner: int | None
) -> NDArray[np.int64]:
    """Largest sum, in size, of two weights of one sign that a product may add first.

    Args:
        values: any shape.
        axis, inner: as for `symmetric`.

    Returns:
        One an index of `axis`, (n,); of all of it, (1,), where that is None.
    """
    if inner is None or inner == axis or values.ndim < 2:
        kept = values.reshape(1, -1) if axis is None else np.moveaxis(values, axis, 0)
        rows = kept.reshape(len(kept), -1).astype(np.int64)  # (n, inputs)
        sums = [np.partition(np.maximum(s, 0), -2, axis=1)[:, -2:].sum(1) for s in _signs(rows)]
    else:
        rows = np.moveaxis(values, inner, -1).astype(np.int64)
        if rows.shape[-1] % 2:
            rows = np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, 1)])
        sums = []
        for signed in _signs(rows):
            pairs = np.maximum(signed, 0).reshape(*rows.shape[:-1], -1, 2).sum(-1)
            sums.append(_over_all_but(pairs, axis, inner))
    largest: NDArray[np.int64] = np.maximum(*sums)
    return largest


def _signs(rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if rows.shape[-1] < 2:
        rows = np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, 2 - rows.shape[-1])])
    return rows, -rows


def _over_all_but(pairs: NDArray[np.int64], axis: int | None, inner: int) -> NDArray[np.int64]:
    """The maximum for each index of what was axis `axis` before `inner` was moved to the end."""
    rows = pairs.reshape(1, -1)
    if axis is not None:
        moved = axis - (axis > inner)
        rows = np.moveaxis(pairs, moved, 0).reshape(pairs.shape[moved], -1)
    largest: NDArray[np.int64] = rows.max(1, initial=0)
    return largest
