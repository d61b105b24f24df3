"""Prune: remove the least important units of a module; what is left is an ordinary checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from exporter.compress.batching import few_feeds
from exporter.compress.costs import told
from exporter.compress.divergence import divergence
from exporter.compress.flops import multiply_accumulates, workload
from exporter.compress.importance import score_weights
from exporter.compress.narrow import narrow
from exporter.compress.sparsity import sparsify, sparsity_of
from exporter.compress.structure import (
    nonzero_count,
    parameter_count,
    structure_of,
)
from exporter.compress.structured import cut
from exporter.errors import DataError
from exporter.models.examples import Examples, Train
from exporter.models.tasks import SILENT, Task
from exporter.progress import Progress
from exporter.recipe import Pruning

BATCH = 8
WORKLOAD_LENGTH = 128  # tokens of the input whose FLOPs are counted


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
        DataError: the examples are not training examples, or there are none.
        ProfileError: a ratio would leave nothing.
        ModelError: a pattern of zeros does not divide a width.

    Zeros that rise on a schedule are left to fine-tuning (`sparsity_hook`).
    """
    examples.require(Train)
    if not examples.feeds:  # whatever scores: how far the answers move is told in any case
        raise DataError(
            "the train split",
            "must hold examples to tell what a removal costs",
            got="none",
            remedy="give data.",
        )
    examples = few_feeds(examples, pruning.examples)
    removed: dict[str, Any] = {}
    skipped: list[str] = []
    result = module
    structure = structure_of(module)
    if pruning.blocks and structure is None:
        kind = getattr(getattr(module, "config", None), "model_type", type(module).__name__)
        skipped.append(f"no units of a {kind} model can be removed: its family is not supported")
    elif pruning.blocks and structure is not None:
        result, removed, skipped = cut(
            module, structure, task, examples, pruning, batch_size=BATCH, progress=progress
        )
    if pruning.channels:
        result, narrowed, lacks = narrow(
            result, task, examples, pruning, batch_size=BATCH, progress=progress
        )
        removed |= narrowed
        skipped += lacks
    if removed:
        removed["multiply_accumulates"] = _work(module, result)
    if pruning.zero_share and pruning.sparsity_schedule == "cubic":
        removed["sparsity"] = {"final": pruning.zero_share, "schedule": "cubic"}
    elif pruning.zero_share:
        scores = score_weights(
            result, examples, pruning.criterion, task=task, batch_size=BATCH, progress=progress
        )
        if scores:
            dense = result
            result = sparsify(
                dense,
                pruning.zero_share,
                scores,
                scope=pruning.sparsity_scope,
                group=pruning.sparsity_group,
            )
            removed["sparsity"] = round(sparsity_of(result), 4)
            moved = told(divergence(dense, result, task, examples, BATCH))
            removed.setdefault("costs", []).append({"part": "sparsity", "divergence": moved})
        else:
            skipped.append("sparsity: the model has no matrices whose weights may become zero")
    if removed:
        removed["criterion"] = pruning.criterion
        removed["parameters"] = {
            "before": parameter_count(module),
            "after": parameter_count(result),
            "nonzero": nonzero_count(result),
        }
        removed["divergence"] = told(divergence(module, result, task, examples, BATCH))
    for text in skipped:
        progress.note(text)
    return PruneResult(result, removed, tuple(skipped))


def _work(module: nn.Module, smaller: nn.Module) -> dict[str, Any]:
    """Multiply-accumulates of one input before and after, and the share that is left."""
    feeds = workload(module, batch=1, length=WORKLOAD_LENGTH)
    before, after = (multiply_accumulates(m, feeds) for m in (module, smaller))
    return {"before": before, "after": after, "share": round(after / before, 4)}
