"""Plan: which units stay, from their importance and the ratios that the recipe asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from exporter.compress.importance import Importance, Scored
from exporter.compress.removal import Removal
from exporter.compress.structure import Structure, accepts
from exporter.errors import ProfileError
from exporter.recipe import Pruning

NEAR = 1 / 12  # share of the width that rounding it may add or take


def plan_removal(
    structure: Structure,
    importance: Importance,
    pruning: Pruning,
    channels: Scored | None = None,
) -> Removal:
    """Choose what stays: the most important units, equally many in each layer.

    Widths stay multiples of 32 (8 in small models), which integer kernels and blocks of 4-bit
    weights ask for.

    Args:
        channels: importance of the channels of the residual stream, (hidden,), for
            `pruning.hidden`.

    Raises:
        ProfileError: a ratio would leave nothing.
    """
    skipped: list[str] = []
    layers = best(importance.layers, layers_left(structure, pruning, skipped), structure.pinned)
    units = _units(structure, pruning, skipped)
    groups = _groups(structure, pruning, skipped)
    hidden = structure.hidden
    if pruning.hidden:
        groups, hidden = _width(structure, groups, pruning, skipped)
    kept = None
    if hidden < structure.hidden:
        assert channels is not None
        kept = best(channels, hidden)
    return Removal(
        layers,
        tuple(best(importance.ffn[i], units) for i in layers),
        tuple(best(importance.groups[i], groups) for i in layers),
        tuple(skipped),
        kept,
    )


def layers_left(structure: Structure, pruning: Pruning, skipped: list[str]) -> int:
    """How many layers stay."""
    layers = _kept_count("layers", structure.layers, pruning.layers)
    if "layers" in structure.skipped and pruning.layers:
        skipped.append(f"layers: {structure.skipped['layers']}")
        return structure.layers
    if pruning.layers and layers == structure.layers:
        skipped.append(f"layers: {pruning.layers:g} of {structure.layers} is less than one")
    return layers


def _units(structure: Structure, pruning: Pruning, skipped: list[str]) -> int:
    """How many feed-forward units of a layer stay."""
    step = _step(structure.ffn)
    units = _kept_count("ffn", structure.ffn, pruning.ffn, step)
    if pruning.ffn and units == structure.ffn:
        skipped.append(f"ffn: {pruning.ffn:g} of {structure.ffn} units is less than {step}")
    return units


def _groups(structure: Structure, pruning: Pruning, skipped: list[str]) -> int:
    """How many KV groups of a layer stay, the hidden width aside."""
    groups = structure.groups
    if not pruning.heads:
        return groups
    if "heads" in structure.skipped:
        if not pruning.hidden:
            skipped.append(f"heads: {structure.skipped['heads']}")
        return groups
    wanted = _kept_count("heads", groups, pruning.heads)
    # Rather fewer removed than asked for than a config that its own class refuses.
    counts = structure.group_counts
    kept = min((c for c in counts if c >= wanted), default=groups)
    if kept == groups:
        skipped.append(
            f"heads: {pruning.heads:g} of {groups} groups a layer is less than one"
            if wanted == groups
            else f"heads: the config of {structure.model_type} accepts no smaller number"
        )
    return kept


def _width(
    structure: Structure, groups: int, pruning: Pruning, skipped: list[str]
) -> tuple[int, int]:
    """(groups, channels) that stay: the width nearest to the ratio that the config accepts."""
    hidden, follow = structure.hidden, structure.family.heads_follow_width
    if "hidden" in structure.skipped:
        skipped.append(f"hidden: {structure.skipped['hidden']}")
        return groups, hidden
    wanted = hidden * (1 - pruning.hidden)
    unit = structure.width("query") if follow else 1

    def accepted(step: int) -> list[tuple[int, int]]:
        pairs = [(w // unit if follow else groups, w) for w in range(unit, hidden, unit)]
        return [p for p in pairs if p[1] % step == 0 and accepts(structure, *p)]

    # A width that kernels like rather than any, unless that is far from what was asked for:
    # some configs want one that the number of heads divides.
    best = (groups, hidden)
    for step in (s for s in (32, 16, 8, 1) if s <= _step(hidden)):
        options = accepted(step)
        if options and wanted < options[0][1] / 2:
            least = options[0][1]
            raise ProfileError(
                "pruning.hidden",
                f"must leave at least {least} of {hidden}",
                got=f"{pruning.hidden:g}",
                remedy=f"remove at most {1 - least / hidden:.2g}, or leave it out.",
            )
        options.append((groups, hidden))
        best = min(options, key=lambda pair: (round(abs(pair[1] - wanted), 6), -pair[1]))
        if abs(best[1] - wanted) <= hidden * NEAR:
            break
    if best[1] == hidden:
        skipped.append(
            f"hidden: the config of {structure.model_type} accepts no width nearer to "
            f"{wanted:g} than the {hidden} that there are"
        )
    return best


def _step(count: int) -> int:
    """What the width of `count` units should be a multiple of."""
    return 32 if count >= 128 else 8 if count >= 16 else 1


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


def best(scores: Sequence[float] | Any, count: int, pinned: Sequence[int] = ()) -> tuple[int, ...]:
    """Indices of the `count` highest scores, ascending; earlier ones win ties."""
    values = np.asarray(scores, np.float64).copy()
    values[list(pinned)] = np.inf
    return tuple(sorted(int(i) for i in np.argsort(-values, kind="stable")[:count]))


def summary(
    structure: Structure,
    importance: Importance,
    removal: Removal,
    channels: Scored | None = None,
) -> dict[str, Any]:
    """What goes, with the share of all importance that stays, JSON-ready.

    Args:
        channels: importance of the channels of the residual stream, (hidden,).
    """
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
    if removal.hidden is not None and channels is not None:
        stays, total = float(channels[list(removal.hidden)].sum()), float(channels.sum())
        found["hidden"] = {
            "before": structure.hidden,
            "after": len(removal.hidden),
            "importance_kept": round(stays / total, 4) if total else None,
        }
    return found
