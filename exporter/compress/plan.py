"""Plan: which units stay, from their importance and the ratios that the recipe asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from exporter.compress.importance import Importance
from exporter.compress.removal import Removal
from exporter.compress.structure import Structure
from exporter.errors import ProfileError
from exporter.recipe import Pruning


def plan_removal(structure: Structure, importance: Importance, pruning: Pruning) -> Removal:
    """Choose what stays: the most important units, equally many in each layer.

    Feed-forward widths stay multiples of 32 (8 in small models), which integer kernels and
    blocks of 4-bit weights ask for.

    Raises:
        ProfileError: a ratio would leave nothing.
    """
    skipped = []
    layers = _kept_count("layers", structure.layers, pruning.layers)
    if "layers" in structure.skipped and pruning.layers:
        layers = structure.layers
        skipped.append(f"layers: {structure.skipped['layers']}")
    elif pruning.layers and layers == structure.layers:
        skipped.append(f"layers: {pruning.layers:g} of {structure.layers} is less than one")
    kept_layers = _best(importance.layers, layers, structure.pinned)

    step = 32 if structure.ffn >= 128 else 8 if structure.ffn >= 16 else 1
    units = _kept_count("ffn", structure.ffn, pruning.ffn, step)
    if pruning.ffn and units == structure.ffn:
        skipped.append(f"ffn: {pruning.ffn:g} of {structure.ffn} units is less than {step}")

    groups = structure.groups
    if pruning.heads and "heads" in structure.skipped:
        skipped.append(f"heads: {structure.skipped['heads']}")
    elif pruning.heads:
        wanted = _kept_count("heads", structure.groups, pruning.heads)
        # Rather fewer removed than asked for than a config that its own class refuses.
        groups = min((c for c in structure.group_counts if c >= wanted), default=structure.groups)
        if groups == structure.groups:
            skipped.append(
                f"heads: {pruning.heads:g} of {structure.groups} groups a layer is less than one"
                if wanted == structure.groups
                else f"heads: the config of {structure.model_type} accepts no smaller number"
            )
    return Removal(
        kept_layers,
        tuple(_best(importance.ffn[i], units) for i in kept_layers),
        tuple(_best(importance.groups[i], groups) for i in kept_layers),
        tuple(skipped),
    )


def _kept_count(part: str, count: int, ratio: float, step: int = 1) -> int:
    """How many of `count` stay: nearest to the ratio in steps, ties towards keeping more."""
    if not ratio or not count:
        return count
    gone = int(np.ceil(ratio * count / step - 0.5 - 1e-9)) * step
    if gone >= count:
        most = (count - 1) // step * step / count
        raise ProfileError(
            f"pruning.{part}",
            f"must leave at least {step} of {count}",
            got=f"{ratio:g}",
            remedy=f"remove at most {most:.2g}, or leave it out.",
        )
    return -(-(count - gone) // step) * step if gone else count


def _best(scores: Sequence[float] | Any, count: int, pinned: Sequence[int] = ()) -> tuple[int, ...]:
    """Indices of the `count` highest scores, ascending; earlier ones win ties."""
    values = np.asarray(scores, np.float64).copy()
    values[list(pinned)] = np.inf
    return tuple(sorted(int(i) for i in np.argsort(-values, kind="stable")[:count]))


def summary(structure: Structure, importance: Importance, removal: Removal) -> dict[str, Any]:
    """What goes, with the share of all importance that stays, JSON-ready."""
    layers = list(removal.layers)
    found: dict[str, Any] = {}
    if len(layers) < structure.layers:
        found["layers"] = {
            "before": structure.layers,
            "after": len(layers),
            "kept": layers,
            "importance": [round(float(v), 4) for v in importance.layers],
        }
    for part, count, kept, scores in (
        ("ffn", structure.ffn, removal.ffn, importance.ffn),
        ("heads", structure.groups, removal.groups, importance.groups),
    ):
        if kept and len(kept[0]) < count:
            stays = sum(
                float(scores[layer][list(units)].sum())
                for layer, units in zip(layers, kept, strict=True)
            )
            total = float(scores[layers].sum())
            found[part] = {
                "before": count,
                "after": len(kept[0]),
                "importance_kept": round(stays / total, 4) if total else None,
            }
    return found
