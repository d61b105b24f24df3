"""Costs: what the removal of each part alone does to the answers, before anything makes up for it.

Each part is masked in the original, which computes what removing it would; the cost is the task's
distillation loss to the whole original's answers. Costs need not add up: parts can stand in for
one another, or only together be missed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import nn

from exporter.compress.channels import Coupled
from exporter.compress.divergence import divergences
from exporter.compress.hidden import hidden_masked
from exporter.compress.masking import masked
from exporter.compress.removal import Removal
from exporter.compress.structure import Structure
from exporter.compress.units import Kind, Point, Slice, Unit, structure_units
from exporter.models.examples import Examples, Train
from exporter.models.tasks import Task

Part = Literal["layers", "ffn", "heads", "hidden", "channels"]


@dataclass(frozen=True)
class Going:
    """What goes together and is paid for together.

    Attributes:
        part: its kind, as `removed` calls it.
        off: the unit that is masked, or the channels of the residual stream that stay.
        before, after: how many there are and stay, where it is some of several.
        layer: that it lies in; None for what lies in no layer or in all.
        name: of what it lies in, where that has no number.
    """

    part: Part
    off: Unit | tuple[int, ...]
    before: int | None = None
    after: int | None = None
    layer: int | None = None
    name: str | None = None

    def facts(self) -> dict[str, Any]:
        """What it is, JSON-ready; what there is none of is left out."""
        told = {name: getattr(self, name) for name in ("part", "layer", "name", "before", "after")}
        return {name: value for name, value in told.items() if value is not None}


def going(module: nn.Module, structure: Structure, removal: Removal) -> list[Going]:
    """What a removal takes away: whole layers, and of each other layer the units and groups."""
    found = [
        Going("layers", unit, layer=unit.layer)
        for unit in structure_units(module, structure, "layer")
        if unit.layer not in removal.layers
    ]
    family = structure.family
    inside: tuple[tuple[Part, Kind, str, int, tuple[tuple[int, ...], ...]], ...] = (
        ("ffn", "ffn", family.ffn_out, structure.ffn, removal.ffn),
        ("heads", "group", family.attention_out, structure.groups, removal.groups),
    )
    for part, kind, reader, counted, kept in inside:
        for layer, stays in zip(removal.layers, kept, strict=True):
            gone = sorted(set(range(counted)) - set(stays))
            if not gone:
                continue
            features = gone if kind == "ffn" else structure.features(gone)
            point = Point(f"{structure.stack}.{layer}.{reader}", "input", tuple(features))
            off = Unit(kind, f"layer {layer} {part}", layer, (), point)
            found.append(Going(part, off, counted, len(stays), layer))
    if removal.hidden is not None:
        found.append(Going("hidden", removal.hidden, structure.hidden, len(removal.hidden)))
    return found


def going_channels(groups: Sequence[Coupled], kept: Sequence[Sequence[int]]) -> Iterator[Going]:
    """What goes of each coupled set of channels, named by the first part that writes it."""
    for group, stays in zip(groups, kept, strict=True):
        gone = tuple(sorted(set(range(group.count)) - set(stays)))
        if not gone:
            continue
        name = group.writers[0][0].rpartition(".")[0]
        slices = tuple(Slice(parameter, axis, gone) for parameter, axis in group.writers)
        off = Unit("channel", f"{name} channels", None, slices)
        yield Going("channels", off, group.count, len(stays), name=name)


def costs(
    module: nn.Module,
    structure: Structure | None,
    task: Task,
    examples: Examples[Train],
    parts: Sequence[Going],
    batch_size: int,
) -> list[dict[str, Any]]:
    """What each part costs on its own, JSON-ready; None where the answers become NaN.

    The module is masked in place and comes back bit by bit; no copy of it is made.

    Args:
        structure: of the module; None where no part is of the residual stream.
    """

    def mask(one: Going) -> AbstractContextManager[object]:
        if isinstance(one.off, Unit):
            return masked(module, one.off)
        assert structure is not None
        return hidden_masked(module, structure, one.off)

    masks = [partial(mask, one) for one in parts]
    moved = divergences(module, task, examples, batch_size, masks)
    return [
        {**one.facts(), "divergence": told(value)} for one, value in zip(parts, moved, strict=True)
    ]


def told(value: float) -> float | None:
    """A cost as it is written down; None for NaN and infinities."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
