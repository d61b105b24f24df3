"""Low rank: adapters on frozen weights, merged so that zeros stay zero.

W + M ⊙ (B A) with B (out, rank) and A (rank, in): LoRA (Hu et al., arXiv:2106.09685) whose change
is masked by M, which is zero where a sparsified weight is. Gradients and AdamW's moments are
kept for A and B alone: for models too large to train fully.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from exporter.compress.importance import prunable_weights
from exporter.errors import ModelError


class MaskedLowRank(nn.Module):
    """What a weight becomes: itself plus a product of two thin matrices where it is not zero."""

    def __init__(self, weight: Tensor, rank: int, zeros: Tensor | None) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        rank = min(rank, rows, columns)
        # A random and B zero, as LoRA begins: at first the weight is what it was.
        self.a = nn.Parameter(torch.empty(rank, columns))
        self.b = nn.Parameter(torch.zeros(rows, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))
        self.zeros: Tensor | None
        # Not in the state: it is read from the frozen weights, which are not in it either.
        self.register_buffer("zeros", zeros, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """The adapted weight, of the weight's own shape (out, in, ...)."""
        change = (self.b @ self.a).view_as(weight)
        return weight + (change if self.zeros is None else change.masked_fill(self.zeros, 0.0))


def add_adapters(module: nn.Module, rank: int, masks: Mapping[str, Tensor], *, seed: int) -> None:
    """Freeze `module` and put an adapter on each of its matrices, in place.

    Args:
        rank: of the adapters; smaller matrices get what they can have.
        masks: where matrices are to stay zero, by parameter name (`zero_masks`).

    Raises:
        ModelError: the module has no matrices that adapters go on.
    """
    parts = prunable_weights(module)
    if not parts:
        raise ModelError(
            "fine_tune.rank",
            f"needs matrices to adapt, and {type(module).__name__} has none",
            remedy="leave rank out to train every weight.",
        )
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, part in parts.items():
            weight = part.weight
            assert isinstance(weight, Tensor)
            adapter = MaskedLowRank(weight, rank, masks.get(name))
            parametrize.register_parametrization(part, "weight", adapter)


def merge_adapters(module: nn.Module) -> None:
    """Make adapted weights the module's own, in place: it answers as before, bit for bit.

    A module without adapters is left as it is.
    """
    adapted = [part for part in module.modules() if _is_adapted(part)]
    for part in adapted:
        parametrize.remove_parametrizations(part, "weight", leave_parametrized=True)
    if adapted:
        for parameter in module.parameters():
            parameter.requires_grad_(True)


def _is_adapted(part: nn.Module) -> bool:
    if not parametrize.is_parametrized(part, "weight"):
        return False
    steps: Any = part.parametrizations
    return any(isinstance(step, MaskedLowRank) for step in steps.weight)
