"""Importance: how much the performance hangs on each unit and each weight, 0 to 1.

What a unit is say `units`, how it is scored say `criteria`, each in a file of its own. Here raw
effects become shares: the largest of its kind (within its layer, for heads and feed-forward
units, of which every layer keeps equally many) has importance 1, and 0 is what has no effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from exporter.compress.criteria import Scene, can_score, get_criterion
from exporter.compress.criteria import Scored as Scored
from exporter.compress.matrices import prunable_weights as prunable_weights
from exporter.compress.matrices import rows_axis
from exporter.compress.statistics import Wanted, collect
from exporter.compress.structure import Structure
from exporter.compress.units import Unit, structure_units, units_along
from exporter.errors import ProfileError
from exporter.models.examples import Examples, Train
from exporter.models.tasks import SILENT, Task
from exporter.progress import Progress
from exporter.recipe import CRITERIA

LAYERS = "block-influence"  # what ranks layers where a criterion cannot


@dataclass(frozen=True)
class Importance:
    """Importance of each removable unit, 0 (dead) to 1 (the most important of its kind).

    Attributes:
        ffn: (layers, units), scaled within each layer.
        groups: (layers, groups), scaled within each layer.
        layers: (layers,).
        hidden: (width,) of the residual stream; None where its axes were not given.
    """

    ffn: Scored
    groups: Scored
    layers: Scored
    hidden: Scored | None = None


def score_structure(
    module: nn.Module,
    structure: Structure,
    examples: Examples[Train] | None,
    *,
    criterion: str = "wanda",
    task: Task | None = None,
    hidden: Mapping[str, tuple[int, ...]] | None = None,
    batch_size: int = 8,
    damping: float | None = None,
    scratch: Path | None = None,
    progress: Progress = SILENT,
) -> Importance:
    """Score feed-forward units, KV groups, layers and hidden channels of a module.

    Layers are ranked by block influence where the criterion cannot; a kind that it cannot score
    at all is given equal scores, and the recipe refuses to remove it by them. The order in which
    examples lie does not matter: they are visited in an order of their own.

    Args:
        task: needed by criteria that look at the loss.
        hidden: parameter name -> axes that run over the residual stream, to score its channels.

    Raises:
        DataError: the criterion needs training examples, or labels, and there are none.
        ModelError: a weight or an activation is NaN or infinite.
        ProfileError: there is no such criterion.
    """
    ffn = structure_units(module, structure, "ffn")
    groups = structure_units(module, structure, "group")
    layers = structure_units(module, structure, "layer")
    channels: list[Unit] = []
    if hidden:
        width = min(dict(module.named_parameters())[n].shape[a] for n, (a, *_) in hidden.items())
        channels = units_along(module, "hidden", hidden, width)
    by_layers = criterion
    if not can_score(_known(criterion), "layer"):
        by_layers = LAYERS
    parts = [(criterion, ffn), (criterion, groups), (by_layers, layers), (criterion, channels)]
    parts = [
        (name, units if units and can_score(name, units[0].kind) else []) for name, units in parts
    ]
    found = score_units(
        module,
        parts,
        examples,
        task=task,
        batch_size=batch_size,
        damping=damping,
        scratch=scratch,
        progress=progress,
    )

    def table(values: Scored, count: int) -> Scored:
        if not len(values):
            return np.ones((structure.layers, count))
        rows = values.reshape(structure.layers, count)
        return np.stack([shares(row) for row in rows])

    return Importance(
        table(found[0], structure.ffn),
        table(found[1], structure.groups),
        shares(found[2]),
        shares(found[3]) if len(found[3]) else None,
    )


def score_units(
    module: nn.Module,
    parts: Sequence[tuple[str, Sequence[Unit]]],
    examples: Examples[Train] | None,
    *,
    task: Task | None = None,
    batch_size: int = 8,
    damping: float | None = None,
    scratch: Path | None = None,
    progress: Progress = SILENT,
) -> list[Scored]:
    """Raw effects of units, each list by its criterion; one run over the data serves them all.

    Args:
        parts: criterion and units; each result is (units,), in their order.

    Raises:
        As `score_structure`.
    """
    wanted = Wanted()
    for name, units in parts:
        if units:
            wanted |= get_criterion(name).wants(module, units, False)
    statistics = collect(
        module, task, examples, wanted, batch_size=batch_size, scratch=scratch, progress=progress
    )
    scene = Scene(module, task, examples, statistics, damping, scratch, progress)
    return [
        get_criterion(name).units(scene, units) if units else np.zeros(0) for name, units in parts
    ]


def score_weights(
    module: nn.Module,
    examples: Examples[Train] | None,
    criterion: str = "wanda",
    *,
    task: Task | None = None,
    batch_size: int = 8,
    damping: float | None = None,
    progress: Progress = SILENT,
) -> dict[str, Tensor]:
    """Score every weight that may become zero, by parameter name, in the parameter's shape.

    A score is the share of its matrix's largest. With `wanda` it is the rank within its output
    row, so that a threshold takes the same share from every row. A weight without any effect has
    0 with every criterion.

    Raises:
        As `score_structure`.
    """
    if not can_score(_known(criterion), "weight"):
        raise ProfileError(
            "pruning.criterion",
            "must score single weights to set some to zero",
            got=criterion,
            remedy=f"take one of {', '.join(c for c in CRITERIA if 'weight' in CRITERIA[c])}.",
        )
    scorer = get_criterion(criterion)
    wanted = scorer.wants(module, (), True)
    statistics = collect(module, task, examples, wanted, batch_size=batch_size, progress=progress)
    effects = scorer.weights(Scene(module, task, examples, statistics, damping, None, progress))
    if criterion != "wanda":
        return {name: _share(values).float() for name, values in effects.items()}
    parts = prunable_weights(module)
    return {name: _ranked(values, rows_axis(parts[name])) for name, values in effects.items()}


def shares(values: Scored) -> Scored:
    """Non-negative effects as shares of the largest; what is no number any more counts as it."""
    finite = values[np.isfinite(values)]
    largest = finite.max(initial=0.0)
    known = np.where(np.isfinite(values), values, largest)
    return known / largest if largest > 0 else np.zeros_like(values)


def _known(criterion: str) -> str:
    get_criterion(criterion)
    return criterion


def _share(values: Tensor) -> Tensor:
    largest = values.max()
    return values / largest if float(largest) > 0 else values


def _ranked(values: Tensor, rows: int) -> Tensor:
    """Ranks within each output row, from 1 / width to 1; 0 for no effect at all."""
    turned = values.transpose(0, rows) if rows else values
    flat = turned.flatten(1)
    ranks = flat.argsort(dim=1, stable=True).argsort(dim=1, stable=True).float()
    ranked = torch.where(flat > 0, (ranks + 1) / flat.shape[1], 0.0).view(turned.shape)
    return (ranked.transpose(0, rows) if rows else ranked).contiguous()
