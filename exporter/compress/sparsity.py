"""Sparsity: single weights set to zero. It makes the download smaller, never the model faster."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from exporter.compress.importance import prunable_weights
from exporter.compress.structure import is_transposed
from exporter.errors import ModelError

Scope = Literal["layer", "global"]


class LeastOfEach(torch_prune.BasePruningMethod):
    """N:M sparsity: in each `group` neighbours of the last axis, the least important are pruned.

    The pattern of Mishra et al. (arXiv:2104.08378), for any number of zeros in a group.
    """

    PRUNING_TYPE = "unstructured"

    def __init__(self, zeros: int, group: int) -> None:
        self.zeros = zeros
        self.group = group

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """1 where a weight stays. `t`: importance, (..., in); `group` divides in."""
        grouped = t.reshape(-1, self.group)  # (groups, group)
        least = grouped.argsort(dim=1, stable=True)[:, : self.zeros]
        return default_mask * torch.ones_like(grouped).scatter(1, least, 0.0).reshape(t.shape)


def sparsify(
    module: nn.Module,
    ratio: float,
    importance: Mapping[str, Tensor],
    *,
    scope: Scope = "layer",
    group: int | None = None,
) -> nn.Module:
    """A copy of `module` in which the least important share `ratio` of the weights is zero.

    Arguments and errors are those of `choose_zeros`.
    """
    sparse = copy.deepcopy(module)
    apply_zeros(sparse, choose_zeros(sparse, ratio, importance, scope=scope, group=group))
    return sparse


def choose_zeros(
    module: nn.Module,
    ratio: float,
    importance: Mapping[str, Tensor],
    *,
    scope: Scope = "layer",
    group: int | None = None,
) -> dict[str, Tensor]:
    """Which weights are to be zero: parameter name -> bool, True for zero.

    Args:
        ratio: share of zeros, 0 to 1.
        importance: non-negative scores by parameter name, in the parameter's shape
            (`score_weights`).
        scope: `layer` takes the share from each matrix, `global` from all of them together.
        group: take the share from each so many neighbours along the input axis, as N:M patterns
            want; the whole number of zeros nearest to it.

    Raises:
        ModelError: `group` does not divide the input axis of a matrix.
    """
    parts = prunable_weights(module)
    scores = {name: importance[name].detach() for name in parts}
    if group is not None:
        check_group(module, group)
        least = LeastOfEach(round(ratio * group), group)
        turned = {name: _inputs_last(scores[name], part) for name, part in parts.items()}
        return {
            name: _inputs_last(_gone(least, turned[name]), part) for name, part in parts.items()
        }
    method = torch_prune.L1Unstructured(ratio)
    if scope == "layer":
        return {name: _gone(method, score) for name, score in scores.items()}
    flat = torch.cat([score.flatten() for score in scores.values()])
    pieces = torch.split(_gone(method, flat), [score.numel() for score in scores.values()])
    return {
        name: piece.view_as(score)
        for (name, score), piece in zip(scores.items(), pieces, strict=True)
    }


def apply_zeros(module: nn.Module, zeros: Mapping[str, Tensor]) -> None:
    """Set the chosen weights to exactly zero, in place."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, chosen in zeros.items():
            parameters[name].masked_fill_(chosen, 0.0)


def check_group(module: nn.Module, group: int | None) -> None:
    """Refuse a pattern's groups that do not divide every input axis; None is no pattern.

    Raises:
        ModelError: they do not.
    """
    if group is None:
        return
    odd = {}
    for name, part in prunable_weights(module).items():
        weight = part.weight
        assert isinstance(weight, Tensor)
        width = weight.shape[0 if is_transposed(part) else 1]
        if width % group:
            odd[name] = width
    if odd:
        named = ", ".join(f"{name} ({width})" for name, width in list(odd.items())[:3])
        raise ModelError(
            "pruning.sparsity_pattern",
            f"needs input widths that {group} divides",
            got=f"{named}{', ...' if len(odd) > 3 else ''}",
            remedy="leave the pattern out, or set one whose groups divide every width.",
        )


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


def _gone(method: torch_prune.BasePruningMethod, scores: Tensor) -> Tensor:
    """True where a method prunes."""
    mask: Tensor = method.compute_mask(  # type: ignore[no-untyped-call]
        scores, torch.ones_like(scores)
    )
    return mask == 0


def _inputs_last(values: Tensor, part: nn.Module) -> Tensor:
    """A weight with its input axis last; done twice it is as it was.

    The input axis of a convolution is its channels, (out, in / groups, *kernel).
    """
    return values.transpose(0 if is_transposed(part) else 1, -1)
