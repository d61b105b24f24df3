"""Rounding: what quantization makes of weights and activations, in floats that can be trained.

The arithmetic of `exporter.quantize` and of onnxruntime's kernels, step for step (scales in
float32, halves to even, zero exact), so that a module that trained with it answers as the integer
model will. Gradients pass straight through the rounding (Bengio et al., arXiv:1308.3432), and stop
where a value was clipped.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LEVELS = 255  # steps of an unsigned byte
FULL_RANGE = 127  # largest int8 weight; -128 is left out
SAFE_PAIR = 128  # 255 · 128 = 32,640: two products of one sign that an int16 holds
SAFE_RANGE = SAFE_PAIR // 2
MIN_SCALE = 2.0**-126  # below it a float32 is subnormal
NARROWER = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7)  # shares of a 4-bit block's range that are tried
MIN_BLOCK = 16


class _Straight(torch.autograd.Function):
    """A rounded value, bit for bit, with the gradient of the value it was rounded from."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, rounded: Tensor, inside: Tensor | None) -> Tensor:
        ctx.save_for_backward(inside)
        return rounded.to(value.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, None, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] if inside is None else gradients[0] * inside, None, None


def straight(value: Tensor, rounded: Tensor, inside: Tensor | None = None) -> Tensor:
    """`rounded` going forward; going backward `value` where it is `inside`, or everywhere."""
    made: Tensor = _Straight.apply(value, rounded, inside)  # type: ignore[no-untyped-call]
    return made


def dynamic_input(x: Tensor) -> Tensor:
    """Round an activation as DynamicQuantizeLinear does: one uint8 scale for the whole tensor."""
    with torch.no_grad():
        given = x.detach().float()
        low, high = given.amin().clamp(max=0), given.amax().clamp(min=0)
        scale = (high - low) / LEVELS
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        zero_point = torch.round((0 - low / scale).clamp(0, LEVELS))
        levels = (torch.round(given / scale) + zero_point).clamp(0, LEVELS)
        rounded = (levels - zero_point) * scale
    return straight(x, rounded)


def static_input(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Round an activation to the uint8 levels of a fixed range, as QuantizeLinear does.

    Args:
        low, high: scalars, zero between them.
    """
    with torch.no_grad():
        given = x.detach().float()
        span = (high.double() - low.double()) / LEVELS
        scale = span.clamp(min=MIN_SCALE).float()
        zero_point = torch.round(-low.double() / scale.double()).clamp(0, LEVELS).float()
        levels = torch.round(given / scale) + zero_point
        inside = (levels >= 0) & (levels <= LEVELS)
        rounded = (levels.clamp(0, LEVELS) - zero_point) * scale
    return straight(x, rounded, inside)


def int8_weight(weight: Tensor, *, per_channel: bool, safe: bool, neighbours: bool) -> Tensor:
    """Round a weight to int8 and back: `exporter.quantize.integers.symmetric`.

    Args:
        weight: (out, in, ...).
        per_channel: one scale an output; else one for all of it.
        safe: no pair of products may saturate int16.
        neighbours: pairs are neighbours along the input axis, as in matrix products; else any two
            weights of an output may meet, as in convolutions.
    """
    with torch.no_grad():
        given = weight.detach().float()
        rows = given.flatten(1)  # (out, inputs)
        peak = rows.abs().amax(1, keepdim=True)
        if not per_channel:
            peak = peak.amax().reshape(1, 1)
        limit = torch.full_like(peak, FULL_RANGE)
        while True:
            scale = (peak / limit).clamp(min=MIN_SCALE)
            values = torch.round(rows / scale).clamp(-limit, limit)
            if not safe:
                break
            together = values if per_channel or neighbours else values.reshape(1, -1)
            pairs = _largest_pair(together, neighbours)  # (out, 1)
            pairs = pairs if per_channel else pairs.amax().reshape(1, 1)
            beyond = pairs > SAFE_PAIR
            if not beyond.any():
                break
            fitting = torch.floor(limit * SAFE_PAIR / pairs.clamp(min=1))
            fitting = torch.minimum(fitting.clamp(min=SAFE_RANGE), limit - 1)
            limit = torch.where(beyond, fitting, limit)
        rounded = (values * scale).view_as(given)
    return straight(weight, rounded)


def block_weight(weight: Tensor, *, block_size: int, bits: int) -> Tensor:
    """Round a weight in blocks of the input axis and back: `exporter.quantize.integers.blocks`.

    Args:
        weight: (out, in).
        bits: 4 or 8.
    """
    with torch.no_grad():
        given = weight.detach().float()
        outputs, inputs = given.shape
        size = fitting_block(inputs, block_size)
        padded = torch.nn.functional.pad(given, (0, -inputs % size))
        cut = padded.view(outputs, -1, size)  # (out, blocks, block)
        best = _block(cut, 1.0, bits)
        least = (best - cut).square().sum(2, keepdim=True)
        for share in NARROWER if bits == 4 else ():
            tried = _block(cut, share, bits)
            error = (tried - cut).square().sum(2, keepdim=True)
            best = torch.where(error < least, tried, best)
            least = torch.minimum(error, least)
        rounded = best.view(outputs, -1)[:, :inputs]
    return straight(weight, rounded)


def fitting_block(width: int, block_size: int) -> int:
    """The largest power of two up to `block_size` that divides `width`, or `block_size`."""
    size = block_size
    while size > MIN_BLOCK and width % size:
        size //= 2
    return block_size if width % size else size


def _block(cut: Tensor, share: float, bits: int) -> Tensor:
    """Blocks (out, blocks, block) rounded over a share of each one's range, and back."""
    levels = (1 << bits) - 1
    low = cut.amin(2, keepdim=True).clamp(max=0) * share
    high = cut.amax(2, keepdim=True).clamp(min=0) * share
    scale = ((high - low) / levels).clamp(min=MIN_SCALE)
    zero_point = torch.round(-low / scale).clamp(0, levels)
    values = torch.round(cut / scale + zero_point).clamp(0, levels)
    return (values - zero_point) * scale


def _largest_pair(values: Tensor, neighbours: bool) -> Tensor:
    """Largest sum, in size, of two weights of one sign that a product may add first, (out, 1)."""
    if values.shape[1] % 2 or values.shape[1] < 2:
        values = torch.nn.functional.pad(values, (0, 1))
    sums = []
    for signed in (values.clamp(min=0), (-values).clamp(min=0)):
        if neighbours:
            sums.append(signed.view(len(signed), -1, 2).sum(2).amax(1, keepdim=True))
        else:
            sums.append(signed.topk(2, dim=1).values.sum(1, keepdim=True))
    largest: Tensor = torch.maximum(*sums)
    return largest
