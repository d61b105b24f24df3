"""Sparsity: single weights set to zero. It makes the download smaller, never the model faster."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from exporter.compress.importance import prunable_weights


def sparsify(module: nn.Module, ratio: float, importance: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `module` in which the least important share `ratio` of each matrix is zero.

    Args:
        importance: scores by parameter name (`score_weights`).
    """
    sparse = copy.deepcopy(module)
    for name, part in prunable_weights(sparse).items():
        torch_prune.l1_unstructured(  # type: ignore[no-untyped-call]
            part, "weight", amount=ratio, importance_scores=importance[name]
        )
        torch_prune.remove(part, "weight")  # type: ignore[no-untyped-call]
    return sparse


def zero_masks(module: nn.Module) -> dict[str, Tensor]:
    """Where the matrices of a sparsified module are zero: parameter name -> bool mask.

    Read from the weights themselves, so that it survives saving and loading. A matrix that is
    zero everywhere was initialised so and may still learn: it is left out.
    """
    masks = {}
    for name, part in prunable_weights(module).items():
        weight = part.weight
        assert isinstance(weight, Tensor)
        zeros = weight.detach() == 0
        if zeros.any() and not zeros.all():
            masks[name] = zeros
    return masks


def sparsity_of(module: nn.Module) -> float:
    """Share of zeros among the weights that may become zero, 0 to 1."""
    weights = [part.weight for part in prunable_weights(module).values()]
    total = sum(w.numel() for w in weights if isinstance(w, Tensor))
    zeros = sum(int((w == 0).sum()) for w in weights if isinstance(w, Tensor))
    return zeros / total if total else 0.0
