"""Prune: remove the least important units of a module; what is left is an ordinary checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn

from exporter.compress.activations import tensors
from exporter.compress.batching import spread
from exporter.compress.importance import Importance, score_structure, score_weights
from exporter.compress.removal import Removal, remove
from exporter.compress.sparsity import sparsify, sparsity_of
from exporter.compress.structure import (
    Structure,
    nonzero_count,
    parameter_count,
    structure_of,
)
from exporter.errors import ProfileError
from exporter.models.examples import Examples, Train
from exporter.models.runner import forward_names, named_outputs
from exporter.models.tasks import SILENT, Task
from exporter.progress import Progress
from exporter.recipe import Pruning

BATCH = 8
DIVERGENCE_BATCHES = 4


@dataclass(frozen=True)
class PruneResult:
    """A pruned module.

    Attributes:
        module: the result; the very module that was given if nothing could be removed.
        removed: what went, JSON-ready; empty if nothing could be removed.
        skipped: what was asked for and cannot be done, a sentence each.
    """

    module: nn.Module
    removed: dict[str, Any]
    skipped: tuple[str, ...]


def prune(
    module: nn.Module,
    task: Task,
    examples: Examples[Train],
    pruning: Pruning,
    *,
    progress: Progress = SILENT,
) -> PruneResult:
    """Score, then remove what the recipe asks for and the module's config can say.

    Not more than `pruning.examples` feeds are looked at, spread over all that are given.

    Raises:
        DataError: the examples are not training examples.
        ProfileError: a ratio would leave nothing.
    """
    examples.require(Train)
    examples = _spread(examples, pruning.examples)
    removed: dict[str, Any] = {}
    skipped: list[str] = []
    result = module
    structure = structure_of(module)
    if pruning.structured and structure is None:
        kind = getattr(getattr(module, "config", None), "model_type", type(module).__name__)
        skipped.append(f"no units of a {kind} model can be removed: its family is not supported")
    elif pruning.structured and structure is not None:
        importance = score_structure(
            module,
            structure,
            examples,
            criterion=pruning.criterion,
            batch_size=BATCH,
            progress=progress,
        )
        removal = plan_removal(structure, importance, pruning)
        skipped += removal.skipped
        removed = _summary(structure, importance, removal)
        if removed:
            result = remove(module, removal)
    if pruning.sparsity:
        scores = score_weights(
            result, examples, pruning.criterion, batch_size=BATCH, progress=progress
        )
        if scores:
            result = sparsify(result, pruning.sparsity, scores)
            removed["sparsity"] = round(sparsity_of(result), 4)
        else:
            skipped.append("sparsity: the model has no matrices whose weights may become zero")
    if removed:
        removed["criterion"] = pruning.criterion
        removed["parameters"] = {
            "before": parameter_count(module),
            "after": parameter_count(result),
            "nonzero": nonzero_count(result),
        }
        removed["divergence"] = _divergence(module, result, task, examples)
    for text in skipped:
        progress.note(text)
    return PruneResult(result, removed, tuple(skipped))


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


def _summary(structure: Structure, importance: Importance, removal: Removal) -> dict[str, Any]:
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


def _divergence(
    original: nn.Module, pruned: nn.Module, task: Task, examples: Examples[Train]
) -> float:
    """How far the answers moved before any recovery: the task's distillation loss."""
    losses = []
    training = original.training
    with torch.no_grad():
        original.eval()
        pruned.eval()
        for batch in islice(examples.batches(BATCH), DIVERGENCE_BATCHES):
            feeds = tensors(batch, forward_names(original))
            loss = task.distill_loss(
                named_outputs(pruned(**feeds)), named_outputs(original(**feeds)), feeds, 1.0
            )
            losses.append(float(loss))
    original.train(training)
    pruned.train(training)
    return float(np.mean(losses))


def _spread(examples: Examples[Train], count: int) -> Examples[Train]:
    """At most `count` feeds, evenly from all examples: long documents would cost minutes."""
    if len(examples.feeds) <= count:
        return examples
    chosen = spread(len(examples.feeds), count)
    return Examples(
        examples.role,
        examples.ids,
        tuple(examples.feeds[i] for i in chosen),
        tuple(examples.owner[i] for i in chosen),
        examples.labels,
        examples.pad,
        examples.meta,
    )
