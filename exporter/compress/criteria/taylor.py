"""Taylor: the first-order change of the loss when weights become zero.

Molchanov et al., arXiv:1906.10771: |Σ g·w| over a unit's weights, g the gradient of the mean loss
over the data (their equation 8, of a group; the root of it, which orders alike).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from exporter.compress.criteria import Scene, Scored, parameters_of
from exporter.compress.matrices import prunable_weights
from exporter.compress.statistics import Wanted
from exporter.compress.units import Unit, total


class Taylor:
    """Gradient times weight."""

    def wants(self, module: nn.Module, units: Sequence[Unit], weights: bool) -> Wanted:
        """The gradient by every parameter."""
        return Wanted(gradient=parameters_of(module, units, weights))

    def units(self, scene: Scene, units: Sequence[Unit]) -> Scored:
        """|Σ g·w| of all weights that go with each unit."""
        named = dict(scene.module.named_parameters())
        counted = parameters_of(scene.module, units, False)
        slopes = {n: _slope(scene, n, named[n]) for n in counted}
        return np.abs(np.asarray([total(slopes, unit.slices) for unit in units], np.float64))

    def weights(self, scene: Scene) -> dict[str, Tensor]:
        """|g·w| of each weight."""
        parts = prunable_weights(scene.module)
        return {n: _slope(scene, n, p.get_parameter("weight")).abs() for n, p in parts.items()}


def _slope(scene: Scene, name: str, weight: Tensor) -> Tensor:
    return scene.statistics.gradient(name) * weight.detach().double()


CRITERION = Taylor()
