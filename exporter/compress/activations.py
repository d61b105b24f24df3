"""Activations: what flows through a module on training data, as sums that stay small."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from exporter.errors import DataError
from exporter.models.examples import Batch, Examples, Train
from exporter.models.runner import forward_names
from exporter.progress import Progress


def watch(
    module: nn.Module,
    examples: Examples[Train] | None,
    batch_size: int,
    norms: dict[nn.Module, Tensor],
    inputs_of: list[nn.Module],
    turns: dict[nn.Module, list[float]],
    progress: Progress,
) -> None:
    """Run the examples once and add up what the named parts see.

    Args:
        norms: filled with the sum of squares of each input feature of each of `inputs_of`,
            (in,) float64; a part that the data never reaches is left out.
        turns: filled, for each of its layers, with the sum over positions of 1 − cosine between
            what enters and what leaves, and the number of positions.

    Raises:
        DataError: there are no training examples.
    """
    if examples is None or not examples.feeds:
        raise DataError(
            "pruning.criterion",
            "'wanda' needs training examples",
            got="none",
            remedy="give data, or set criterion = 'magnitude'.",
        )
    examples.require(Train)
    mask: list[Tensor | None] = [None]

    def see_input(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen = _rows(part, _first(args, kwargs), mask[0]).double().square().sum(0)
        norms[part] = norms[part] + seen if part in norms else seen

    def see_turn(
        part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        before = _rows(part, _first(args, kwargs), mask[0]).double()
        after = _rows(part, output if isinstance(output, Tensor) else output[0], mask[0]).double()
        turn = 1 - nn.functional.cosine_similarity(before, after, dim=-1)
        turns[part][0] += float(turn.sum())
        turns[part][1] += turn.numel()

    names = forward_names(module)
    batches = -(-len(examples.feeds) // batch_size)
    with ExitStack() as hooks, torch.no_grad(), _evaluating(module):
        for part in inputs_of:
            handle = part.register_forward_pre_hook(see_input, with_kwargs=True)
            hooks.callback(handle.remove)
        for part in turns:
            turned = part.register_forward_hook(see_turn, with_kwargs=True)
            hooks.callback(turned.remove)
        with progress.stage("score importance", batches) as bar:
            for batch in examples.batches(batch_size, _own_order(examples)):
                feeds = tensors(batch, names)
                mask[0] = feeds.get("attention_mask")
                module(**feeds)
                bar.advance()


def tensors(batch: Batch, names: tuple[str, ...]) -> dict[str, Tensor]:
    """The feeds of a batch that `forward` takes, as tensors."""
    return {k: torch.from_numpy(np.array(v)) for k, v in batch.feeds.items() if k in names}


def _own_order(examples: Examples[Train]) -> list[int]:
    """Feeds by length and content hash: the same batches however the examples were given."""

    def key(index: int) -> tuple[int, str, int]:
        feed = examples.feeds[index]
        return sum(a.size for a in feed.values()), examples.ids[examples.owner[index]], index

    return sorted(range(len(examples.feeds)), key=key)


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The tensor that a layer works on."""
    value = args[0] if args else next(v for v in kwargs.values() if isinstance(v, Tensor))
    assert isinstance(value, Tensor)
    return value


def _rows(part: nn.Module, value: Tensor, mask: Tensor | None) -> Tensor:
    """Activations as (positions, features), without those that are padding."""
    if isinstance(part, nn.Conv1d | nn.Conv2d):
        return value.flatten(2).transpose(1, 2).flatten(0, 1)  # from (batch, channels, ...)
    if mask is not None and value.shape[:2] == mask.shape:
        return value[mask.bool()]
    return value.reshape(-1, value.shape[-1])


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Dropout off meanwhile."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
