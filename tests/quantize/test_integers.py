"""Rounding keeps its promises on every weight: bounded error, zero exact, nothing saturates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from exporter.graph.pairs import SAFE_PAIR, largest_pair
from exporter.quantize.calibrate import Range
from exporter.quantize.integers import FULL_RANGE, SAFE_RANGE, blocks, symmetric

Matrix = NDArray[np.float32]
finite = st.floats(-1e4, 1e4, width=32, allow_subnormal=True)
matrices = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=70), elements=finite
)


@settings(max_examples=60, deadline=None)
@given(matrices, st.sampled_from([0, 1, None]), st.booleans())
def test_int8_error_is_at_most_half_a_step_and_zero_is_exact(
    weight: Matrix, axis: int | None, safe: bool
) -> None:
    made = symmetric(weight, axis=axis, safe=safe, inner=0)
    scale = made.scale if axis is None else np.expand_dims(made.scale, 1 - axis)
    assert np.abs(made.values).max() <= FULL_RANGE
    assert np.all(np.abs(made.values * scale - weight) <= scale * 0.5001)
    assert np.all(made.values[weight == 0] == 0)


@settings(max_examples=60, deadline=None)
@given(matrices, st.sampled_from([16, 32]))
def test_8_bit_blocks_err_at_most_half_a_step_and_zero_is_exact(
    weight: Matrix, block_size: int
) -> None:
    made = blocks(weight, block_size=block_size, bits=8)
    restored = made.dequantized()[: len(weight)]
    step = np.repeat(made.scale, block_size, axis=1).T[: len(weight)]
    assert np.all(np.abs(restored - weight) <= step * 0.501)
    assert np.all(restored[weight == 0] == 0)


@settings(max_examples=60, deadline=None)
@given(matrices)
def test_4_bit_zero_is_exact(weight: Matrix) -> None:
    made = blocks(weight, block_size=32, bits=4)
    assert np.all(made.dequantized()[: len(weight)][weight == 0] == 0)
    assert made.values.max(initial=0) <= 15


def test_4_bit_blocks_are_closer_than_onnxruntimes_own() -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        DefaultWeightOnlyQuantizer,
    )

    weight = np.random.default_rng(0).standard_t(4, (256, 96)).astype(np.float32)
    made = blocks(weight, block_size=32, bits=4)
    theirs = DefaultWeightOnlyQuantizer(
        DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=False, bits=4)
    )
    packed, scale, zero_point = theirs.qbits_block_quant(weight)
    assert packed.shape == made.packed.shape
    assert zero_point.shape == made.packed_zero_point.shape
    levels = np.stack([packed & 15, packed >> 4], axis=-1).reshape(96, 8, 32)
    zeros = np.stack([zero_point & 15, zero_point >> 4], axis=-1).reshape(96, 8)
    centred = levels.astype(np.float32) - zeros[..., None]
    other = (centred * scale.reshape(96, 8, 1)).reshape(96, 256).T
    ours = np.square(made.dequantized() - weight).mean()
    assert ours < 0.97 * np.square(other - weight).mean()


def test_a_scale_per_channel_is_finer_than_one_per_tensor() -> None:
    rng = np.random.default_rng(0)
    weight = (rng.normal(size=(64, 32)) * rng.uniform(0.1, 10, 32)).astype(np.float32)
    channel = symmetric(weight, axis=1)
    tensor = symmetric(weight, axis=None)
    fine = np.square(channel.values * channel.scale - weight).sum(axis=0)
    coarse = np.square(tensor.values * tensor.scale - weight).sum(axis=0)
    assert fine.sum() < 0.5 * coarse.sum()


def test_a_safe_pair_cannot_saturate_int16_and_the_next_one_can() -> None:
    assert 255 * SAFE_PAIR <= np.iinfo(np.int16).max < 255 * (SAFE_PAIR + 1)
    assert 2 * SAFE_RANGE <= SAFE_PAIR


def _worst_sums(values: NDArray[np.int8]) -> NDArray[np.int64]:
    """Largest size of two neighbours' products with any activations, (out,) from (in, out)."""
    if len(values) % 2:
        values = np.vstack([values, np.zeros_like(values[:1])])
    first, second = values[::2].astype(np.int64), values[1::2].astype(np.int64)
    ends = [255 * (a + b) for a in (first, 0 * first) for b in (second, 0 * second)]
    return np.abs(ends).max(axis=(0, 1))


@settings(max_examples=100, deadline=None)
@given(matrices)
def test_safe_weights_never_saturate_and_safe_channels_keep_all_bits(weight: Matrix) -> None:
    plain = symmetric(weight, axis=1)
    safe = symmetric(weight, axis=1, safe=True, inner=0)
    assert np.all(_worst_sums(safe.values) <= np.iinfo(np.int16).max)
    np.testing.assert_array_equal(
        255 * largest_pair(plain.values, axis=1, inner=0), _worst_sums(plain.values)
    )
    fine = _worst_sums(plain.values) <= np.iinfo(np.int16).max
    np.testing.assert_array_equal(safe.values[:, fine], plain.values[:, fine])
    assert np.all(
        np.abs(safe.values).max(0, initial=0) >= np.abs(plain.values).max(0, initial=0) / 2
    )


def test_only_the_channel_with_a_heavy_pair_gets_coarser_and_only_as_far_as_needed() -> None:
    weight = np.zeros((4, 3), np.float32)
    weight[:, 0] = [1, -1, 1, -1]  # signs alternate: no pair adds up
    weight[:, 1] = [1, 1, 0, 0]  # a pair of the largest
    weight[:, 2] = [0.2, 1, 0.1, 0]  # 127 + 25 > 128: a little too much
    made = symmetric(weight, axis=1, safe=True, inner=0)
    assert np.abs(made.values).max(axis=0).tolist()[:2] == [127, 64]
    assert 64 < np.abs(made.values[:, 2]).max() < 127
    tensor = symmetric(weight, axis=None, safe=True, inner=0)
    assert np.abs(tensor.values).max() == 64


def test_where_pairs_are_unknown_any_two_count() -> None:
    kernel = np.zeros((2, 1, 3, 3), np.float32)
    kernel[0, 0, 0, 0] = kernel[0, 0, 2, 2] = 1  # far apart
    kernel[1, 0, 0, 0] = 1
    made = symmetric(kernel, axis=0, safe=True)
    assert np.abs(made.values).reshape(2, -1).max(1).tolist() == [64, 127]


def test_a_table_and_the_layer_that_shares_it_round_alike() -> None:
    table = np.random.default_rng(0).normal(size=(40, 7)).astype(np.float32)
    rows = symmetric(table, axis=0, safe=True, inner=1)
    columns = symmetric(table.T, axis=1, safe=True, inner=0)
    np.testing.assert_array_equal(rows.values, columns.values.T)
    np.testing.assert_array_equal(rows.scale, columns.scale)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.0, 6.0), (-2.5, 0.0), (0.0, 0.0)])
def test_an_activations_zero_is_a_level(low: float, high: float) -> None:
    span = Range(low, high)
    levels = np.clip(np.rint(np.array([low, 0, high]) / span.scale) + span.zero_point, 0, 255)
    restored = (levels - span.zero_point) * span.scale
    assert restored[1] == 0
    assert np.all(np.abs(restored - [low, 0, high]) <= 0.501 * span.scale)
