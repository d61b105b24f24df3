"""Divergence: how far a compressed module's answers lie from the original's."""

from __future__ import annotations

from itertools import islice

import numpy as np
import torch
from torch import nn

from exporter.compress.activations import evaluating, tensors
from exporter.models.examples import Examples, Train
from exporter.models.runner import forward_names, named_outputs
from exporter.models.tasks import Task

BATCHES = 4


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
        for batch in islice(examples.batches(batch_size), BATCHES):
            feeds = tensors(batch, forward_names(original))
            loss = task.distill_loss(
                named_outputs(compressed(**feeds)), named_outputs(original(**feeds)), feeds, 1.0
            )
            losses.append(float(loss))
    return float(np.mean(losses))
