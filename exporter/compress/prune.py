"""Prune: remove the least important units of a module; what is left is an ordinary checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn

from exporter.compress.activations import tensors
from exporter.compress.batching import few_feeds
from exporter.compress.importance import score_weights
from exporter.compress.sparsity import sparsify, sparsity_of
from exporter.compress.structure import (
    nonzero_count,
    parameter_count,
    structure_of,
)
from exporter.compress.structured import cut
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
    examples = few_feeds(examples, pruning.examples)
    removed: dict[str, Any] = {}
    skipped: list[str] = []
    result = module
    structure = structure_of(module)
    if pruning.structured and structure is None:
        kind = getattr(getattr(module, "config", None), "model_type", type(module).__name__)
        skipped.append(f"no units of a {kind} model can be removed: its family is not supported")
    elif pruning.structured and structure is not None:
        result, removed, skipped = cut(
            module, structure, task, examples, pruning, batch_size=BATCH, progress=progress
        )
    if pruning.sparsity:
        scores = score_weights(
            result, examples, pruning.criterion, task=task, batch_size=BATCH, progress=progress
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
