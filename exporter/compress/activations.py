"""Activations: what flows through a module on training data, as sums that stay small."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from exporter.errors import DataError
from exporter.models.examples import Batch, Examples, Train
from exporter.models.runner import forward_names
from exporter.progress import Progress

# What a part of a module took in and gave out: (positions, in), (positions, out); no padding.
Observer = Callable[[Tensor, Tensor], None]


@dataclass
class Energy:
    """Sum of squares of each input feature, (in,) float64."""

    total: Tensor = field(default_factory=lambda: torch.zeros(()))

    def __call__(self, entered: Tensor, left: Tensor) -> None:
        """Add the rows that a layer took in; an `Observer`."""
        self.total = self.total + entered.double().square().sum(0)


@dataclass
class Moments:
    """Sums over the positions of a layer's input; they grow with the layer, not with the data.

    Attributes:
        count: positions.
        total: sum of the inputs, (in,) float64.
        second: sum of the outer products XᵀX, (in, in) float64.
    """

    count: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros(()))
    second: Tensor = field(default_factory=lambda: torch.zeros(()))

    def __call__(self, entered: Tensor, left: Tensor) -> None:
        """Add the rows that a layer took in; an `Observer`."""
        rows = entered.double()
        self.count += rows.shape[0]
        self.total = self.total + rows.sum(0)
        self.second = self.second + rows.T @ rows

    @property
    def mean(self) -> Tensor:
        """Mean input, (in,)."""
        return self.total / max(self.count, 1)


def watch(
    module: nn.Module,
    examples: Examples[Train] | None,
    batch_size: int,
    observers: Mapping[nn.Module, Observer],
    progress: Progress,
) -> None:
    """Run the examples once, without gradients, and show each named part's rows to its observer.

    A part that the data never reaches is never called for.

    Raises:
        DataError: there are no training examples.
    """
    if examples is None or not examples.feeds:
        raise DataError(
            "pruning.criterion",
            "needs training examples to look at activations",
            got="none",
            remedy="give data, or set criterion = 'magnitude'.",
        )
    examples.require(Train)
    names = forward_names(module)
    batches = -(-len(examples.feeds) // batch_size)
    with (
        torch.no_grad(),
        evaluating(module),
        observing(observers) as masked_by,
        progress.stage("score importance", batches) as bar,
    ):
        for batch in examples.batches(batch_size, own_order(examples)):
            feeds = tensors(batch, names)
            masked_by(feeds.get("attention_mask"))
            module(**feeds)
            bar.advance()


@contextmanager
def observing(
    observers: Mapping[nn.Module, Observer],
) -> Iterator[Callable[[Tensor | None], None]]:
    """Show each part's rows to its observer meanwhile.

    Yields what is to be told each batch's attention mask before the module runs.
    """
    mask: list[Tensor | None] = [None]

    def hook(observer: Observer) -> Callable[..., None]:
        def see(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            left = out if isinstance(out, Tensor) else out[0]
            observer(_rows(part, _first(args, kwargs), mask[0]), _rows(part, left, mask[0]))

        return see

    def masked_by(value: Tensor | None) -> None:
        mask[0] = value

    with ExitStack() as hooks:
        for part, observer in observers.items():
            handle = part.register_forward_hook(hook(observer), with_kwargs=True)
            hooks.callback(handle.remove)
        yield masked_by


def tensors(batch: Batch, names: tuple[str, ...]) -> dict[str, Tensor]:
    """The feeds of a batch that `forward` takes, as tensors."""
    return {k: torch.from_numpy(np.array(v)) for k, v in batch.feeds.items() if k in names}


def own_order(examples: Examples[Train]) -> list[int]:
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
    if mask is not None and value.ndim > 2 and value.shape[:2] == mask.shape:
        return value[mask.bool()]
    return value.reshape(-1, value.shape[-1])


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Dropout off meanwhile."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
