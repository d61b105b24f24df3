"""Select: which units stay, by threshold, by share, or within a budget.

`P' = {p : I(p) > θ}`: a threshold of 0 removes only what has no effect, and what stays at a
higher threshold stays at every lower one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import nn

from exporter.compress.criteria import Scored, owners
from exporter.compress.units import Unit, total

Cost = Literal["parameters", "flops"]


def above(importance: Scored, threshold: float) -> tuple[int, ...]:
    """Indices of the units whose importance is above a threshold, ascending."""
    return tuple(int(i) for i in np.flatnonzero(importance > threshold))


def best(importance: Scored, count: int) -> tuple[int, ...]:
    """Indices of the `count` most important units, ascending; earlier ones win ties."""
    return tuple(sorted(int(i) for i in np.argsort(-importance, kind="stable")[:count]))


def share(importance: Scored, ratio: float) -> tuple[int, ...]:
    """Indices of what stays when at most a share `ratio` of all units goes."""
    return best(importance, len(importance) - int(np.floor(ratio * len(importance) + 1e-9)))


def within(importance: Scored, costs: Scored, budget: float) -> tuple[int, ...]:
    """Indices of what stays within a budget, the most important first.

    The first unit that does not fit ends it: so kept sets are nested as the budget grows, which
    they would not be if a smaller one were taken in its place.

    Args:
        costs: of each unit, in the budget's unit; see `cost_of`.
    """
    order = np.argsort(-importance, kind="stable")
    fits = int(np.searchsorted(np.cumsum(costs[order]), budget * (1 + 1e-12), side="right"))
    return tuple(sorted(int(i) for i in order[:fits]))


def uniform(importance: Scored, kept: Sequence[int], *, least: int = 1) -> list[tuple[int, ...]]:
    """The same number in every layer, as a config with one width for all layers demands.

    Every layer keeps as many as the one that keeps most, its best ones: nothing that was kept
    goes, and kept sets stay nested.

    Args:
        importance: (layers, units).
        kept: indices into the flat importance.
        least: units that a layer keeps in any case.
    """
    layers, units = importance.shape
    stays = np.zeros(importance.size, bool)
    stays[list(kept)] = True
    # Scores that tie across the cut must not push out what was kept.
    ranks = np.where(stays.reshape(layers, units), importance + 2.0, importance)
    count = max(least, int(stays.reshape(layers, units).sum(1).max(initial=0)))
    return [best(row, count) for row in ranks]


def cost_of(module: nn.Module, units: Sequence[Unit], cost: Cost) -> Scored:
    """What each unit costs, (units,).

    `parameters` are counted once each. `flops` are two for each weight of a linear layer that
    every position is multiplied by; convolutions and attention's own products are not counted.
    """
    linear = {
        name
        for name, (_, part) in owners(module).items()
        if not isinstance(part, nn.Conv1d | nn.Conv2d)
    }
    each = {
        name: 1.0 if cost == "parameters" else 2.0 * (name in linear)
        for name, _ in module.named_parameters()
    }
    counted = {n: torch.full(p.shape, each[n]) for n, p in module.named_parameters()}
    return np.asarray([total(counted, unit.slices) for unit in units], np.float64)
