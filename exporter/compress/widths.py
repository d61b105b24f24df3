"""Widths: how the config of each convolutional family says that it has fewer channels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import nn


def narrower_config(module: nn.Module, ratio: float) -> Any | None:
    """The module's config with about that share of channels less, as it reads back from JSON.

    None where its family is not known here.
    """
    original: Any = getattr(module, "config", None)
    narrow = _FAMILIES.get(str(getattr(original, "model_type", "")))
    if narrow is None:
        return None
    config = copy.deepcopy(original)
    narrow(config, 1 - ratio)
    return type(config).from_dict(config.to_dict())


def _multiplied(config: Any, share: float) -> None:
    """MobileNets: one multiplier for all widths, in eighths of the original's."""
    eighths = max(round(8 * share), 1)
    config.depth_multiplier = config.depth_multiplier * eighths / 8


def _listed(config: Any, share: float) -> None:
    """ResNets: a width for each stage."""
    entering, first = config.embedding_size, config.hidden_sizes[0]
    config.embedding_size = _rounded(entering, share)
    config.hidden_sizes = [_rounded(width, share) for width in config.hidden_sizes]
    if entering != first and config.embedding_size == config.hidden_sizes[0]:
        # The first shortcut has a convolution only where these differ: the wider stays wider.
        if entering > first:
            config.embedding_size += _step(entering)
        else:
            config.hidden_sizes[0] += _step(first)


def _rounded(width: int, share: float) -> int:
    step = _step(width)
    return min(max(round(width * share / step), 1) * step, width)


def _step(width: int) -> int:
    """Multiples of 32 of wide stages and of 8 of narrow ones, which kernels like."""
    return 32 if width >= 128 else 8 if width >= 16 else 4


# By `model_type`. To add a family, add its line and its name to the tests' list.
_FAMILIES: dict[str, Callable[[Any, float], None]] = {
    "mobilenet_v1": _multiplied,
    "mobilenet_v2": _multiplied,
    "resnet": _listed,
}
CHANNEL_FAMILIES = tuple(_FAMILIES)
