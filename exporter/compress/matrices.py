"""Matrices: the layers whose single weights may become zero, and which axis is which."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from exporter.compress.structure import is_transposed


def prunable_weights(module: nn.Module) -> dict[str, nn.Module]:
    """Matrices and kernels whose weights may become zero: parameter name -> its layer.

    Embeddings, everything tied to them, and the output projection of a language model stay. A
    weight that two layers share is listed once.
    """
    kept = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    head = getattr(module, "get_output_embeddings", lambda: None)()
    if head is not None and getattr(head, "weight", None) is not None:
        kept.add(id(head.weight))
    found: dict[str, nn.Module] = {}
    for name, part in module.named_modules():
        if is_matrix(part) and id(part.weight) not in kept:
            kept.add(id(part.weight))
            found[f"{name}.weight" if name else "weight"] = part
    return found


def is_matrix(part: nn.Module) -> bool:
    """True for linear layers and convolutions."""
    return isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d) or is_transposed(part)


def rows_axis(part: nn.Module) -> int:
    """The axis of a layer's weight that runs over its outputs; inputs run over the other one."""
    return 1 if is_transposed(part) else 0


def as_rows(part: nn.Module, value: Tensor) -> Tensor:
    """Values in the shape of a layer's weight as (out, in), or (out, in / groups, ...)."""
    return value.T if is_transposed(part) else value


def met(part: nn.Module, features: Tensor) -> Tensor:
    """What each weight of a layer meets, broadcastable to its weight as it lies.

    Args:
        features: one value an input feature or channel, (in,).
    """
    if is_transposed(part):
        return features[:, None]  # against (in, out)
    if not isinstance(part, nn.Conv1d | nn.Conv2d):
        return features  # against (out, in)
    out = part.out_channels
    each = features.view(part.groups, -1).repeat_interleave(out // part.groups, 0)
    return each.view(*each.shape, *[1] * len(part.kernel_size))  # (out, in / groups, 1 ...)


def weight_of(part: nn.Module) -> Tensor:
    """A layer's weight as float64, outside of any graph."""
    return part.get_parameter("weight").detach().to(torch.float64)
