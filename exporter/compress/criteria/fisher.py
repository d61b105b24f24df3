"""Fisher: the second-order change of the loss, its Hessian as the diagonal empirical Fisher.

½·w²·E[g²] a weight, summed over a unit (Theis et al., arXiv:1801.05787), g the gradient of one
example's loss. Data and model in agreement have no first order left; this is what remains.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from exporter.compress.criteria import Scene, Scored, parameters_of
from exporter.compress.matrices import prunable_weights
from exporter.compress.statistics import Wanted
from exporter.compress.units import Unit, total


class Fisher:
    """Squared gradient times squared weight."""

    def wants(self, module: nn.Module, units: Sequence[Unit], weights: bool) -> Wanted:
        """The squared gradient by every parameter."""
        return Wanted(gradient=parameters_of(module, units, weights))

    def units(self, scene: Scene, units: Sequence[Unit]) -> Scored:
        """½·Σ w²·E[g²] over all weights that go with each unit."""
        named = dict(scene.module.named_parameters())
        counted = parameters_of(scene.module, units, False)
        losses = {n: _loss(scene, n, named[n]) for n in counted}
        return np.asarray([total(losses, unit.slices) for unit in units], np.float64)

    def weights(self, scene: Scene) -> dict[str, Tensor]:
        """½·w²·E[g²] of each weight."""
        parts = prunable_weights(scene.module)
        return {n: _loss(scene, n, p.get_parameter("weight")) for n, p in parts.items()}


def _loss(scene: Scene, name: str, weight: Tensor) -> Tensor:
    return scene.statistics.fisher(name) * weight.detach().double().square() / 2


CRITERION = Fisher()
