"""OBS: the least change of a layer's output when weights go and the others make up for them.

With H = E[xxᵀ] of a layer's input, damped: w²/(2·[H⁻¹]jj) for one weight (Hassibi and Stork, 1993;
OBC, arXiv:2208.11580; SparseGPT, arXiv:2301.00774), and ½·w_G ([H⁻¹]_GG)⁻¹ w_Gᵀ for a group G of
inputs (ZipLM, arXiv:2302.04089), summed over outputs. Whole rows have nothing beside them that
could make up: ½·w H wᵀ. What another unit puts out as well costs nothing to remove.

Kernels of convolutions are taken position by position: H is that of their channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from exporter.compress.criteria import Scene, Scored, owners, paths_of, readers
from exporter.compress.matrices import as_rows, met, prunable_weights, rows_axis, weight_of
from exporter.compress.soundness import check_positions, check_seen
from exporter.compress.statistics import Wanted
from exporter.compress.units import Slice, Unit, taken

DAMPING = 0.01  # of the mean diagonal, as in SparseGPT


class Obs:
    """Weights and the whole Hessian of the layers that take a unit in."""

    def wants(self, module: nn.Module, units: Sequence[Unit], weights: bool) -> Wanted:
        """The Hessian of each layer's input."""
        return Wanted(second=paths_of(module, units, weights))

    def units(self, scene: Scene, units: Sequence[Unit]) -> Scored:
        """Σ over the layers that take each unit in."""
        owned = owners(scene.module)
        layers: dict[str, _Layer] = {}
        found = []
        for unit in units:
            effect = 0.0
            for path, part, one in dict.fromkeys(readers(owned, unit)):
                if path not in layers:
                    layers[path] = _Layer.of(part, hessian(scene, path, part))
                effect += layers[path].effect(one)
            found.append(effect)
        return np.asarray(found, np.float64)

    def weights(self, scene: Scene) -> dict[str, Tensor]:
        """w²/(2·[H⁻¹]jj) of each weight."""
        scores = {}
        for name, part in prunable_weights(scene.module).items():
            path = name.removesuffix("weight").removesuffix(".")
            scores[name] = _Layer.of(part, hessian(scene, path, part)).each
        return scores


def hessian(scene: Scene, path: str, part: nn.Module) -> Tensor:
    """The damped H of a layer's input, (in, in); blocks only where a convolution has groups.

    Raises:
        DataError: the data never reached the layer, or too little of it did.
    """
    second = scene.statistics.second(path).clone()
    groups = getattr(part, "groups", 1)
    width = second.shape[0] // groups
    check_seen(path, scene.statistics.positions(path))
    check_positions(path, scene.statistics.positions(path), width, scene.damping)
    if groups > 1:
        own = torch.arange(len(second)) // width
        second[own[:, None] != own] = 0.0
    mean = float(second.diagonal().mean()) or 1.0
    damping = DAMPING if scene.damping is None else scene.damping
    second.diagonal().add_(damping * mean)
    return second


@dataclass(frozen=True)
class _Layer:
    """What is asked of a layer again and again.

    Attributes:
        rows: its weight, (out, in).
        second, inverse: H and its inverse, (in, in).
        each: what each weight alone costs, as the weight lies.
    """

    part: nn.Module
    rows: Tensor
    second: Tensor
    inverse: Tensor
    each: Tensor

    @classmethod
    def of(cls, part: nn.Module, second: Tensor) -> _Layer:
        weight = weight_of(part)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(second))
        each = weight.square() / (2 * met(part, inverse.diagonal()))
        return cls(part, as_rows(part, weight), second, inverse, each)

    def effect(self, one: Slice) -> float:
        """What the removal of one slice of the layer's weight costs."""
        index = torch.tensor(one.index)
        if one.axis is None or isinstance(self.part, nn.Conv1d | nn.Conv2d):
            return float(taken(self.each, one).sum())
        if one.axis == rows_axis(self.part):
            whole = self.rows[index]
            return float(((whole @ self.second) * whole).sum()) / 2
        columns = self.rows[:, index]  # (out, group)
        inner = torch.linalg.solve(self.inverse[index][:, index], columns.T)  # (group, out)
        return float((columns.T * inner).sum()) / 2


CRITERION = Obs()
