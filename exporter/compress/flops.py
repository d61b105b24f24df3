"""FLOPs: the multiply-accumulates that a module spends on an input, counted while it runs.

Counted are matrix products (linear layers, attention's scores and sums) and convolutions; norms,
activations and look-ups are left out, as is usual. An attention that skips what is masked may do
less than is counted here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from exporter.compress.activations import evaluating
from exporter.models.runner import forward_names

IMAGE_SIZE = 224  # where a config does not tell


def multiply_accumulates(module: nn.Module, feeds: Mapping[str, Tensor]) -> int:
    """Multiply-accumulates of one call with these feeds."""
    counter = FlopCounterMode(display=False)
    # The fused attention of CPUs is one opaque operator; its plain form is two matrix products.
    with torch.no_grad(), evaluating(module), sdpa_kernel(SDPBackend.MATH), counter:
        module(**feeds)
    return int(counter.get_total_flops()) // 2


def workload(module: nn.Module, *, batch: int, length: int) -> dict[str, Tensor]:
    """Feeds of that many inputs: `length` tokens each or as many as fit, or an image."""
    config: Any = module.config
    names = forward_names(module)
    if "pixel_values" in names:
        size = getattr(config, "image_size", None) or IMAGE_SIZE
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return {"pixel_values": torch.zeros(batch, config.num_channels, height, width)}
    length = min(length, getattr(config, "max_position_embeddings", length))
    tokens = torch.zeros(batch, length, dtype=torch.long)
    feeds = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return {name: value for name, value in feeds.items() if name in names}
