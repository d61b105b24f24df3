"""Structured pruning of a convolutional network: score channels, plan, remove, settle norms.

How many of each coupled set of channels stay is read off the smaller model that the config
describes, so the result is an ordinary checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from exporter.compress.activations import Energy, own_order, tensors, watch
from exporter.compress.channels import (
    Coupled,
    coupled_channels,
    remove_channels,
    widths_in,
)
from exporter.compress.costs import costs, going_channels, told
from exporter.compress.divergence import divergence
from exporter.compress.plan import best
from exporter.compress.structure import build
from exporter.compress.widths import CHANNEL_FAMILIES, narrower_config
from exporter.models.examples import Examples, Train
from exporter.models.runner import forward_names
from exporter.models.tasks import SILENT, Task
from exporter.progress import Progress
from exporter.recipe import Pruning

MILDER = 1 / 16  # how much less of all channels is tried next
SETTLING_BATCH = 32  # few images make noisy statistics of the last, small layers


def narrow(
    module: nn.Module,
    task: Task,
    examples: Examples[Train],
    pruning: Pruning,
    *,
    batch_size: int,
    progress: Progress = SILENT,
) -> tuple[nn.Module, dict[str, Any], list[str]]:
    """Remove the share of channels that the recipe asks for, as near as the config can say it.

    Returns:
        The result (`module` itself if nothing could be removed), what went, JSON-ready, and
        what was asked for and cannot be done, a sentence each.
    """
    if narrower_config(module, pruning.channels) is None:
        kind = getattr(getattr(module, "config", None), "model_type", type(module).__name__)
        known = ", ".join(CHANNEL_FAMILIES)
        return module, {}, [f"channels: those of a {kind} model cannot go, only of {known}"]
    feeds = tensors(next(iter(examples.batches(1))), forward_names(module))
    try:
        groups = coupled_channels(module, feeds)
        smaller, widths = _smaller(module, groups, feeds, pruning.channels)
    except ValueError as error:
        return module, {}, [f"channels: {error}"]
    before, after = sum(group.count for group in groups), sum(widths)
    if before == after:
        return module, {}, [f"channels: {pruning.channels:g} is less than the config can say"]
    scores = score_channels(module, groups, examples, batch_size=batch_size, progress=progress)
    kept = [best(score, width) for score, width in zip(scores, widths, strict=True)]
    result = remove_channels(module, smaller, groups, kept)
    stays = sum(float(score[list(some)].sum()) for score, some in zip(scores, kept, strict=True))
    removed: dict[str, Any] = {
        "channels": {
            "before": before,
            "after": after,
            "importance_kept": round(stays / sum(float(s.sum()) for s in scores), 4),
        },
        "costs": costs(
            module, None, task, examples, list(going_channels(groups, kept)), batch_size
        ),
    }
    if pruning.compensate != "none":
        plain = told(divergence(module, result, task, examples, batch_size))
        settle_norms(result, examples)
        removed["compensation"] = {
            "method": "batch statistics",
            "divergence_without": plain,
            "divergence_with": told(divergence(module, result, task, examples, batch_size)),
        }
    return result, removed, []


def _smaller(
    module: nn.Module, groups: Sequence[Coupled], feeds: Mapping[str, Tensor], ratio: float
) -> tuple[nn.Module, list[int]]:
    """An empty narrower module and its widths: rather fewer removed than another network.

    Raises:
        ValueError: no narrower module couples its channels as this one does.
    """
    while True:
        smaller = build(module, narrower_config(module, ratio))
        try:
            return smaller, widths_in(smaller, groups, feeds)
        except ValueError:
            ratio -= MILDER
            if ratio <= 0:
                raise


def score_channels(
    module: nn.Module,
    groups: Sequence[Coupled],
    examples: Examples[Train] | None,
    *,
    batch_size: int = 8,
    progress: Progress = SILENT,
) -> list[NDArray[np.float64]]:
    """Importance of each channel of each set, (channels,), adding up to 1 in a set.

    What a channel carries into each layer that reads it: its mean square times the square of the
    weights that it meets, as a share of all channels', averaged over the layers.

    Raises:
        DataError: there are no training examples.
    """
    parts = dict(module.named_modules())
    readers = [
        [parts[name.rpartition(".")[0]] for name, axis in group.axes if axis == 1]
        for group in groups
    ]
    seen = {part: Energy() for some in readers for part in some}
    watch(module, examples, batch_size, seen, progress)
    scores = []
    for group, some in zip(groups, readers, strict=True):
        total = torch.zeros(group.count, dtype=torch.float64)
        for part in some:
            weight = part.weight
            assert isinstance(weight, Tensor)
            columns = weight.detach().double().transpose(0, 1).flatten(1).square().sum(1)  # (in,)
            carried = seen[part].total * columns
            if float(carried.sum()) > 0:
                total = total + carried / carried.sum()
        scores.append((total / total.sum().clamp(min=1e-30)).numpy())
    return scores


def settle_norms(module: nn.Module, examples: Examples[Train]) -> None:
    """Measure, in place, the statistics of batch norms anew, on what reaches them now.

    Where a convolution has no bias, this is what takes over the mean of the channels that went
    (as in EagleEye, Li et al., arXiv:2007.02491).
    """
    names = forward_names(module)
    with torch.no_grad(), _measuring(module):
        for batch in examples.batches(SETTLING_BATCH, own_order(examples)):
            module(**tensors(batch, names))


@contextmanager
def _measuring(module: nn.Module) -> Iterator[None]:
    """Batch norms average over all batches meanwhile; everything else is as when it answers."""
    training = module.training
    module.eval()
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        yield
    finally:
        module.train(training)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
