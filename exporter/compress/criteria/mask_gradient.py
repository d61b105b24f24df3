"""Mask gradient: the loss's slope by a gate on a head, a unit or a layer.

Michel et al., arXiv:1905.10650: E|∂loss/∂gate| at a gate of 1, the absolute value of each example
by itself, so that what helps one example and hurts another does not cancel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from exporter.compress.criteria import Scene, Scored
from exporter.compress.statistics import Wanted
from exporter.compress.units import Unit


class MaskGradient:
    """Gates where units can be switched off."""

    def wants(self, module: nn.Module, units: Sequence[Unit], weights: bool) -> Wanted:
        """A gate for each unit that has a point to put one at."""
        return Wanted(gates=tuple(unit for unit in units if unit.point is not None))

    def units(self, scene: Scene, units: Sequence[Unit]) -> Scored:
        """E|∂loss/∂gate| of each unit."""
        return np.asarray([scene.statistics.gate(unit) for unit in units], np.float64)

    def weights(self, scene: Scene) -> dict[str, Tensor]:
        """Single weights have no gates."""
        raise NotImplementedError("mask-gradient scores units, see exporter.recipe.CRITERIA")


CRITERION = MaskGradient()
