"""Wanda: |w| times the norm of the input that it meets (Sun et al., arXiv:2306.11695)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from exporter.compress.criteria import Scene, Scored, owners, paths_of, readers
from exporter.compress.matrices import met, prunable_weights, weight_of
from exporter.compress.statistics import Wanted
from exporter.compress.units import Unit, total


class Wanda:
    """Weights and the activations they meet, in the layers that take a unit in."""

    def wants(self, module: nn.Module, units: Sequence[Unit], weights: bool) -> Wanted:
        """The energy of each input feature."""
        return Wanted(energy=paths_of(module, units, weights))

    def units(self, scene: Scene, units: Sequence[Unit]) -> Scored:
        """Root of Σ w²·E[x²] over the weights that take each unit in."""
        owned = owners(scene.module)
        values: dict[str, Tensor] = {}
        sums = []
        for unit in units:
            taking = readers(owned, unit)
            for path, part, one in taking:
                if one.parameter not in values:
                    energy = scene.statistics.energy(path)
                    values[one.parameter] = weight_of(part).square() * met(part, energy)
            sums.append(total(values, [one for _, _, one in taking]))
        return np.sqrt(np.asarray(sums, np.float64))

    def weights(self, scene: Scene) -> dict[str, Tensor]:
        """|w|·‖x‖ of each weight."""
        scores = {}
        for name, part in prunable_weights(scene.module).items():
            path = name.removesuffix("weight").removesuffix(".")
            scores[name] = weight_of(part).abs() * met(part, scene.statistics.energy(path).sqrt())
        return scores


CRITERION = Wanda()
