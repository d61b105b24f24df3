"""Importance: how much each group of coupled weights, and each weight, matters, 0 to 1.

`magnitude` looks at the weights alone. `wanda` multiplies each weight by the norm of the
input it meets on training data (Sun et al., arXiv:2306.11695), summed over what leaves a
feed-forward unit or a KV group; layers are ranked by how far they turn the residual stream
(block influence, Men et al., arXiv:2403.03853). Only sums of squares are kept, so memory
does not grow with the data.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from exporter.compress.activations import watch
from exporter.compress.families import Projection
from exporter.compress.structure import Structure, is_transposed, matrix_of
from exporter.models.examples import Examples, Train
from exporter.models.tasks import SILENT
from exporter.progress import Progress

Criterion = Literal["magnitude", "wanda"]
Scored = NDArray[np.float64]


@dataclass(frozen=True)
class Importance:
    """Importance of each removable unit, 0 (dead) to 1 (the most important of its kind).

    Attributes:
        ffn: (layers, units), scaled within each layer.
        groups: (layers, groups), scaled within each layer; (layers, 0) where heads stay.
        layers: (layers,).
    """

    ffn: Scored
    groups: Scored
    layers: Scored


def score_structure(
    module: nn.Module,
    structure: Structure,
    examples: Examples[Train] | None,
    *,
    criterion: Criterion = "wanda",
    batch_size: int = 8,
    progress: Progress = SILENT,
) -> Importance:
    """Score feed-forward units, KV groups and layers of a module.

    The order in which examples lie does not matter: they are visited in an order of their own.

    Raises:
        DataError: `wanda` without training examples.
    """
    blocks = structure.blocks(module)
    family = structure.family
    if criterion == "magnitude":
        ffn = [_size(structure, b, family.ffn_in, family.ffn_out, structure.ffn) for b in blocks]
        groups = [
            _size(structure, b, family.attention_in, family.attention_out, structure.groups)
            for b in blocks
        ]
        layers = [
            sum(float(p.detach().double().square().sum()) for p in b.parameters()) for b in blocks
        ]
        return _scaled(ffn, groups, [value**0.5 for value in layers])

    outs = [b.get_submodule(n) for b in blocks for n in (family.ffn_out, family.attention_out) if n]
    norms = {part: _Energy() for part in outs}
    turns = {block: _Turn() for block in blocks}
    watch(module, examples, batch_size, {**norms, **turns}, progress)

    def leaving(block: nn.Module, name: str, count: int) -> Scored:
        if not count:
            return np.zeros(0)
        columns = matrix_of(block, name).detach().double().square().sum(0)  # (in,) from (out, in)
        energy = columns * norms[block.get_submodule(name)].total
        return energy.view(count, -1).sum(1).sqrt().numpy()

    return _scaled(
        [leaving(b, family.ffn_out, structure.ffn) for b in blocks],
        [leaving(b, family.attention_out, structure.groups) for b in blocks],
        [max(turn.total / max(turn.count, 1), 0.0) for turn in turns.values()],
    )


def score_weights(
    module: nn.Module,
    examples: Examples[Train] | None,
    criterion: Criterion = "wanda",
    *,
    batch_size: int = 8,
    progress: Progress = SILENT,
) -> dict[str, Tensor]:
    """Score every weight that may become zero, by parameter name, in the parameter's shape.

    With `magnitude` a score is |w| as a share of its matrix's largest. With `wanda` it is the
    rank within its output row, so that a threshold takes the same share from every row.

    Raises:
        DataError: `wanda` without training examples.
    """
    weights = prunable_weights(module)
    if criterion == "magnitude":
        return {
            name: _share(part.weight.detach().abs())  # type: ignore[operator]
            for name, part in weights.items()
        }
    norms = {part: _Energy() for part in weights.values()}
    watch(module, examples, batch_size, norms, progress)
    scores = {}
    for name, part in weights.items():
        weight = part.weight
        assert isinstance(weight, Tensor)
        rows = weight.detach().abs()
        rows = rows.T if is_transposed(part) else rows
        if norms[part].seen:  # a layer that the data never reached is ranked by size alone
            rows = rows * _meeting(part, norms[part].total.sqrt().float())
        flat = rows.flatten(1)
        ranks = flat.argsort(dim=1, stable=True).argsort(dim=1, stable=True).float()
        ranked = (ranks / max(flat.shape[1] - 1, 1)).view(rows.shape)
        scores[name] = (ranked.T if is_transposed(part) else ranked).contiguous()
    return scores


def prunable_weights(module: nn.Module) -> dict[str, nn.Module]:
    """Matrices and kernels whose weights may become zero: parameter name -> its layer.

    Embeddings, everything tied to them, and the output projection of a language model stay.
    """
    kept = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    head = getattr(module, "get_output_embeddings", lambda: None)()
    if head is not None and getattr(head, "weight", None) is not None:
        kept.add(id(head.weight))
    return {
        f"{name}.weight" if name else "weight": part
        for name, part in module.named_modules()
        if (isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d) or is_transposed(part))
        and id(part.weight) not in kept
    }


@dataclass
class _Energy:
    """Sum of squares of each input feature, (in,) float64."""

    total: Tensor = field(default_factory=lambda: torch.zeros(()))
    seen: bool = False

    def __call__(self, entered: Tensor, left: Tensor) -> None:
        self.total = self.total + entered.double().square().sum(0)
        self.seen = True


@dataclass
class _Turn:
    """Sum over positions of 1 − cosine between what enters a layer and what leaves it."""

    total: float = 0.0
    count: int = 0

    def __call__(self, entered: Tensor, left: Tensor) -> None:
        turn = 1 - nn.functional.cosine_similarity(entered.double(), left.double(), dim=-1)
        self.total += float(turn.sum())
        self.count += turn.numel()


def _size(
    structure: Structure,
    block: nn.Module,
    into: tuple[Projection, ...],
    out: str,
    count: int,
) -> Scored:
    """Norm of all weights of each of `count` units of a layer: its rows in, its columns out."""
    if not count:
        return np.zeros(0)
    total = matrix_of(block, out).detach().double().square().sum(0).view(count, -1).sum(1)
    for projection in into:
        rows = matrix_of(block, projection.name).detach().double().square().sum(1)
        sizes = [count * structure.width(segment) for segment in projection.segments]
        for part in torch.split(rows, sizes):
            total = total + part.view(count, -1).sum(1)
    return total.sqrt().numpy()


def _meeting(part: nn.Module, norms: Tensor) -> Tensor:
    """The input norm that each weight of a layer meets, broadcastable to its weight."""
    if not isinstance(part, nn.Conv1d | nn.Conv2d):
        return norms  # (in,) against (out, in)
    out = part.out_channels
    each = norms.view(part.groups, -1).repeat_interleave(out // part.groups, 0)  # (out, in/groups)
    return each.view(*each.shape, *[1] * len(part.kernel_size))


def _share(values: Tensor) -> Tensor:
    """Non-negative values as shares of the largest."""
    largest = values.max()
    return values / largest if float(largest) > 0 else values


def _scaled(ffn: list[Scored], groups: list[Scored], layers: list[float]) -> Importance:
    """Raw scores with the largest of each layer, or of all layers, at 1."""

    def shares(values: Scored) -> Scored:
        largest = values.max(initial=0.0)
        return values / largest if largest > 0 else np.zeros_like(values)

    return Importance(
        np.stack([shares(row) for row in ffn]),
        np.stack([shares(row) for row in groups]),
        shares(np.asarray(layers, np.float64)),
    )
