"""Structured pruning of a transformer: score, plan, compensate, remove."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from exporter.compress.compensate import compensate
from exporter.compress.costs import costs, going, told
from exporter.compress.criteria import can_score
from exporter.compress.depth import rank_layers
from exporter.compress.divergence import divergence
from exporter.compress.hidden import score_hidden
from exporter.compress.importance import score_structure
from exporter.compress.plan import layers_left, plan_removal, summary
from exporter.compress.removal import remove
from exporter.compress.structure import Structure
from exporter.models.examples import Examples, Train
from exporter.models.tasks import SILENT, Task
from exporter.progress import Progress
from exporter.recipe import Pruning


def cut(
    module: nn.Module,
    structure: Structure,
    task: Task,
    examples: Examples[Train],
    pruning: Pruning,
    *,
    batch_size: int,
    progress: Progress = SILENT,
) -> tuple[nn.Module, dict[str, Any], list[str]]:
    """Remove what the recipe asks for and the module's config can say.

    Returns:
        The result (`module` itself if nothing could be removed), what went, JSON-ready, and
        what was asked for and cannot be done, a sentence each.

    Raises:
        ProfileError: a ratio would leave nothing.
    """
    importance = score_structure(
        module,
        structure,
        examples,
        criterion=pruning.criterion,
        task=task,
        batch_size=batch_size,
        progress=progress,
    )
    gone = structure.layers - layers_left(structure, pruning, [])
    if gone and not can_score(pruning.criterion, "layer"):
        importance = replace(
            importance,
            layers=rank_layers(
                module,
                structure,
                task,
                examples,
                gone,
                batch_size=batch_size,
                progress=progress,
            ),
        )
    channels = None
    if pruning.hidden and "hidden" not in structure.skipped:
        channels = score_hidden(
            module, structure, examples, batch_size=batch_size, progress=progress
        )
    removal = plan_removal(structure, importance, pruning, channels)
    removed = summary(structure, importance, removal, channels)
    skipped = list(removal.skipped)
    if not removed:
        return module, removed, skipped
    parts = going(module, structure, removal)
    removed["costs"] = costs(module, structure, task, examples, parts, batch_size)
    result = remove(module, removal)
    if pruning.compensate != "none" and removed.keys() & {"ffn", "heads"}:
        plain = told(divergence(module, result, task, examples, batch_size))
        changed, lacks = compensate(
            module,
            structure,
            removal,
            examples,
            pruning.compensate,
            batch_size=batch_size,
            progress=progress,
        )
        result = remove(changed, removal)
        removed["compensation"] = {
            "method": pruning.compensate,
            "divergence_without": plain,
            "divergence_with": told(divergence(module, result, task, examples, batch_size)),
        }
        skipped += lacks
    return result, removed, skipped
