"""Block influence: how far a layer turns the residual stream (Men et al., arXiv:2403.03853)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from exporter.compress.criteria import Scene, Scored
from exporter.compress.statistics import Wanted
from exporter.compress.units import Unit


class BlockInfluence:
    """1 − cosine between what enters a layer and what leaves it."""

    def wants(self, module: nn.Module, units: Sequence[Unit], weights: bool) -> Wanted:
        """How far each layer turns."""
        return Wanted(turn=frozenset(_path(unit) for unit in units))

    def units(self, scene: Scene, units: Sequence[Unit]) -> Scored:
        """The mean turn of each layer over positions."""
        return np.asarray([scene.statistics.turn(_path(unit)) for unit in units], np.float64)

    def weights(self, scene: Scene) -> dict[str, Tensor]:
        """Single weights turn nothing."""
        raise NotImplementedError("block-influence scores layers, see exporter.recipe.CRITERIA")


def _path(unit: Unit) -> str:
    assert unit.point is not None
    return unit.point.module


CRITERION = BlockInfluence()
