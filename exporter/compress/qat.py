"""Quantization-aware training: a module that rounds as its integer model will, while it learns.

Layers are replaced in place by twins that round what comes in and what they multiply with
(Jacob et al., arXiv:1712.05877); names, parameters and ties stay. What lies between linear layers
is float in the integer model and here. Static ranges begin at what training data shows and follow
it as moving averages.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from exporter.compress.activations import evaluating, tensors
from exporter.compress.hooks import Hook
from exporter.compress.ranges import LearnedRange, Rounding, weight_fingerprint
from exporter.compress.rounding import block_weight, dynamic_input, int8_weight, static_input
from exporter.compress.structure import is_transposed
from exporter.errors import ModelError
from exporter.models.examples import Examples, Train
from exporter.models.runner import forward_names

AVERAGING = 0.02  # weight of a step's smallest and largest value in a static range
MIN_TABLE_ELEMENTS = 1024  # smaller tables stay exact
OBSERVED_BATCHES = 8  # that static ranges begin with


def rounded_weight(
    matrix: Tensor, rounding: Rounding, *, bits: int = 4, neighbours: bool = True
) -> Tensor:
    """A weight (out, in, ...) as the scheme makes it; `bits` where it has a choice."""
    if rounding.scheme in ("int4-weights", "int8-weights"):
        bits = bits if rounding.scheme == "int4-weights" else 8
        return block_weight(matrix, block_size=rounding.block_size, bits=bits)
    return int8_weight(
        matrix, per_channel=rounding.per_channel, safe=rounding.safe, neighbours=neighbours
    )


class _Twin(nn.Module):
    """What all twins share; mixed into the class of the layer that they stand for."""

    weight: Tensor
    bias: Any
    rounding: Rounding
    table_bits: int
    input_low: Tensor
    input_high: Tensor
    observing: bool

    def entered(self, x: Tensor) -> Tensor:
        """What comes in, rounded."""
        if self.rounding.scheme == "dynamic-int8":
            return dynamic_input(x)
        if self.rounding.scheme == "static-int8":
            if self.observing:
                self._follow(x)
            return static_input(x, self.input_low, self.input_high)
        return x

    @torch.no_grad()
    def _follow(self, x: Tensor) -> None:
        low, high = x.detach().float().amin().clamp(max=0), x.detach().float().amax().clamp(min=0)
        self.input_low.lerp_(low, AVERAGING)
        self.input_high.lerp_(high, AVERAGING)


class RoundedLinear(_Twin, nn.Linear):
    """Linear as MatMulIntegerToFloat computes it."""

    def forward(self, x: Tensor) -> Tensor:
        weight = rounded_weight(self.weight, self.rounding, bits=self.table_bits)
        return nn.functional.linear(self.entered(x), weight, self.bias)


class RoundedConv1D(_Twin, Conv1D):  # type: ignore[misc]
    """GPT-2's linear layer, whose weight is (in, out)."""

    def forward(self, x: Tensor) -> Tensor:
        weight = rounded_weight(self.weight.T, self.rounding, bits=self.table_bits)
        out: Tensor = nn.functional.linear(self.entered(x), weight, self.bias)
        return out


class RoundedConv2d(_Twin, nn.Conv2d):
    """Convolution as QLinearConv computes it."""

    def forward(self, x: Tensor) -> Tensor:
        weight = rounded_weight(self.weight, self.rounding, neighbours=False)
        out: Tensor = self._conv_forward(self.entered(x), weight, self.bias)
        return out


class RoundedEmbedding(_Twin, nn.Embedding):
    """A table whose rows are kept as integers."""

    def forward(self, x: Tensor) -> Tensor:
        weight = rounded_weight(self.weight, self.rounding, bits=self.table_bits)
        return nn.functional.embedding(x, weight, self.padding_idx)


_TWINS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: RoundedLinear,
    Conv1D: RoundedConv1D,
    nn.Conv2d: RoundedConv2d,
    nn.Embedding: RoundedEmbedding,
}


def fake_quantized(module: nn.Module, rounding: Rounding) -> nn.Module:
    """Put twins in the places of all layers that the scheme quantizes; the module itself.

    With `static-int8` its ranges are empty: `observe` fills them. `released` undoes it.

    Raises:
        ModelError: there is no layer that the scheme would quantize.
    """
    tables = {id(p.weight) for p in module.modules() if _is_table(p)}
    found = False
    for part in module.modules():
        twin = _TWINS.get(type(part))
        if twin is None or (type(part) is nn.Embedding and not _is_table(part)):
            continue
        if type(part) is nn.Conv2d and not (
            rounding.scheme == "static-int8" and part.padding_mode == "zeros"
        ):
            continue
        found = found or type(part) is not nn.Embedding
        part.__class__ = twin
        assert isinstance(part, _Twin)
        part.rounding = rounding
        # Tables keep 8 bits, and with them a layer that shares their weight.
        part.table_bits = 8 if id(part.weight) in tables else 4
        part.observing = False
        if rounding.scheme == "static-int8" and not isinstance(part, nn.Embedding):
            part.register_buffer("input_low", torch.zeros(()))
            part.register_buffer("input_high", torch.zeros(()))
    if not found:
        raise ModelError(
            "fine_tune.quantize_aware",
            f"needs a layer that {rounding.scheme} quantizes",
            got=f"a {type(module).__name__} without one",
            remedy="leave quantize_aware out, or choose another quantization.",
        )
    return module


def observe(module: nn.Module, examples: Examples[Train], batch_size: int) -> None:
    """Set static ranges to what a few batches of training examples show.

    Raises:
        DataError: the examples are of another split.
    """
    examples.require(Train)
    seen: dict[_Twin, tuple[Tensor, Tensor]] = {}

    def watch(part: _Twin, args: tuple[Any, ...]) -> None:
        low, high = args[0].amin().clamp(max=0).float(), args[0].amax().clamp(min=0).float()
        before = seen.get(part, (low, high))
        seen[part] = torch.minimum(low, before[0]), torch.maximum(high, before[1])
        # Ahead of the layer's own pass: an empty range would round all that follows to zero.
        part.input_low.copy_(seen[part][0])
        part.input_high.copy_(seen[part][1])

    handles = [part.register_forward_pre_hook(watch) for _, part in _ranged(module)]
    names = forward_names(module)
    with torch.no_grad(), evaluating(module):
        for batch in islice(examples.batches(batch_size), OBSERVED_BATCHES):
            module(**tensors(batch, names))
    for handle in handles:
        handle.remove()


class FollowRanges(Hook):
    """Lets static ranges follow the data in training, and in nothing else."""

    def __init__(self, rounding: Rounding) -> None:
        self.identity = f"quantize-aware {rounding} {AVERAGING}"

    def before_step(self, step: int, steps: int, module: nn.Module) -> None:
        """Follow what this step's batch shows."""
        for _, twin in _ranged(module):
            twin.observing = True

    def after_step(self, module: nn.Module) -> None:
        """Looks at development data leave ranges alone."""
        for _, twin in _ranged(module):
            twin.observing = False


def released(module: nn.Module) -> list[LearnedRange]:
    """Undo `fake_quantized`, in place; the ranges that were trained, none if none are static."""
    ranges = []
    for name, part in _ranged(module):
        weight = part.weight.detach()
        matrix = weight.T if weight.ndim == 2 and not is_transposed(part) else weight
        low, high = float(part.input_low), float(part.input_high)
        ranges.append(LearnedRange(f"{name}.weight", weight_fingerprint(matrix.numpy()), low, high))
    plain = {twin: kind for kind, twin in _TWINS.items()}
    for replaced in module.modules():
        if isinstance(replaced, _Twin):
            replaced.__class__ = plain[type(replaced)]  # type: ignore[assignment]
            for extra in ("rounding", "table_bits", "observing"):
                delattr(replaced, extra)
            for buffer in ("input_low", "input_high"):
                replaced._buffers.pop(buffer, None)
    return ranges


def _ranged(module: nn.Module) -> Iterator[tuple[str, _Twin]]:
    """Twins with a static range, by name."""
    for name, part in module.named_modules():
        if isinstance(part, _Twin) and "input_low" in part._buffers:
            yield name, part


def _is_table(part: nn.Module) -> bool:
    return type(part) is nn.Embedding and part.weight.numel() >= MIN_TABLE_ELEMENTS
