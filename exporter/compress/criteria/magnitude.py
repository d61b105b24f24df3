"""Magnitude: how large the weights are; needs no data (Han et al., arXiv:1506.02626)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from exporter.compress.criteria import Scene, Scored, parameters_of
from exporter.compress.matrices import prunable_weights, weight_of
from exporter.compress.statistics import Wanted
from exporter.compress.units import Unit, total


@dataclass(frozen=True)
class Magnitude:
    """The L1 or L2 norm of a unit's weights, those of layers of another size included.

    Attributes:
        power: 1 or 2.
    """

    power: int = 2

    def wants(self, module: nn.Module, units: Sequence[Unit], weights: bool) -> Wanted:
        """Nothing of data."""
        return Wanted()

    def units(self, scene: Scene, units: Sequence[Unit]) -> Scored:
        """The norm of all weights that go with each unit."""
        named = dict(scene.module.named_parameters())
        powers = {
            name: named[name].detach().double().abs().pow(self.power)
            for name in parameters_of(scene.module, units, False)
        }
        sums = [total(powers, unit.slices) for unit in units]
        return np.asarray(sums, np.float64) ** (1 / self.power)

    def weights(self, scene: Scene) -> dict[str, Tensor]:
        """|w|, whatever the power."""
        parts = prunable_weights(scene.module)
        return {name: weight_of(part).abs() for name, part in parts.items()}


CRITERION = Magnitude()
