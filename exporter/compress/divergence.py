"""Divergence: how far a compressed module's answers lie from the original's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from exporter.compress.activations import evaluating, tensors
from exporter.models.examples import Examples, Train
from exporter.models.runner import forward_names, named_outputs
from exporter.models.tasks import Task

BATCHES = 4
MASKED_BATCHES = 24  # that all masks together are run on, so that many parts cost seconds, too

Mask = Callable[[], AbstractContextManager[object]]


def divergence(
    original: nn.Module,
    compressed: nn.Module,
    task: Task,
    examples: Examples[Train],
    batch_size: int,
) -> float:
    """How far the answers moved before any recovery: the task's distillation loss."""
    losses = []
    with torch.no_grad(), evaluating(original), evaluating(compressed):
        for feeds in _few(original, examples, batch_size):
            loss = task.distill_loss(
                named_outputs(compressed(**feeds)), named_outputs(original(**feeds)), feeds, 1.0
            )
            losses.append(float(loss))
    return float(np.mean(losses))


def divergences(
    module: nn.Module,
    task: Task,
    examples: Examples[Train],
    batch_size: int,
    masks: Sequence[Mask],
    *,
    most: int | None = None,
) -> list[float]:
    """How far each mask of the module itself moves its answers.

    One batch of the whole module's answers is held at a time.

    Args:
        most: batches that are looked at; None takes the feeds of `divergence`, or where there are
            many masks the first of them.
    """
    if most is None:
        most = max(1, min(BATCHES, MASKED_BATCHES // (1 + len(masks))))
    totals = [0.0] * len(masks)
    batches = 0
    with torch.no_grad(), evaluating(module):
        for feeds in _few(module, examples, batch_size, most):
            whole = named_outputs(module(**feeds))
            for i, mask in enumerate(masks):
                with mask():
                    without = named_outputs(module(**feeds))
                totals[i] += float(task.distill_loss(without, whole, feeds, 1.0))
            batches += 1
    return [total / batches for total in totals]


def _few(
    module: nn.Module, examples: Examples[Train], batch_size: int, most: int = BATCHES
) -> Iterator[Mapping[str, Tensor]]:
    for batch in islice(examples.batches(batch_size), most):
        yield tensors(batch, forward_names(module))
