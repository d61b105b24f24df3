"""Statistics: what criteria need to know of data, in one run over it, as sums that stay small.

Activations are summed batch by batch, padding left out. Gradients are taken of one feed at a
time, so that no sum depends on which feeds stand beside which. All sums are float64 and as large
as the weights (or the square of a layer's width, for Hessians), whatever the data; they are saved
on the way, so that a run that is stopped goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from exporter.compress.activations import evaluating, observing, own_order, tensors
from exporter.compress.gates import Gates, Row, gated, rows_of
from exporter.compress.resume import load_checkpoint, save_checkpoint
from exporter.compress.soundness import check_outputs, check_seen, check_weights
from exporter.compress.units import Unit
from exporter.errors import DataError
from exporter.models.examples import Examples, Train
from exporter.models.runner import forward_names, named_outputs
from exporter.models.tasks import SILENT, Task
from exporter.progress import Progress

SAVE_S = 20.0  # how much work a kill costs


@dataclass(frozen=True)
class Wanted:
    """What is to be summed up.

    Attributes:
        energy, second: paths of layers: Σx² of each input feature, and XᵀX.
        turn: paths of parts that pass a stream on: how far each turns it.
        gradient: names of parameters: the loss's gradient by each, and its square.
        gates: units whose effect a gate of 1 tells: |∂loss/∂gate| of each feed.
    """

    energy: frozenset[str] = frozenset()
    second: frozenset[str] = frozenset()
    turn: frozenset[str] = frozenset()
    gradient: frozenset[str] = frozenset()
    gates: tuple[Unit, ...] = ()

    def __or__(self, other: Wanted) -> Wanted:
        return Wanted(
            self.energy | other.energy,
            self.second | other.second,
            self.turn | other.turn,
            self.gradient | other.gradient,
            tuple(dict.fromkeys((*self.gates, *other.gates))),
        )

    @property
    def backward(self) -> bool:
        """True when the loss is differentiated."""
        return bool(self.gradient or self.gates)


@dataclass
class Statistics:
    """Sums over the training examples.

    Attributes:
        feeds: how many were looked at.
        sums: by what they are of and where, float64.
        gated: unit's name -> which sum holds its gate, and where in it.
    """

    feeds: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    gated: dict[str, tuple[str, int]] = field(default_factory=dict)

    def add(self, name: str, value: Tensor) -> None:
        """Add to one sum."""
        if name in self.sums:
            self.sums[name] += value
        else:
            self.sums[name] = value.to(torch.float64, copy=True)

    def positions(self, path: str) -> int:
        """How many positions a layer saw."""
        return int(self.sums[f"count {path}"]) if f"count {path}" in self.sums else 0

    def energy(self, path: str) -> Tensor:
        """Mean x² of each input feature of a layer, (in,).

        Raises:
            DataError: the data never reached it.
        """
        check_seen(path, self.positions(path))
        if f"second {path}" in self.sums:
            return self.sums[f"second {path}"].diagonal() / self.positions(path)
        return self.sums[f"energy {path}"] / self.positions(path)

    def second(self, path: str) -> Tensor:
        """Mean xxᵀ of a layer's input, (in, in).

        Raises:
            DataError: the data never reached it.
        """
        check_seen(path, self.positions(path))
        return self.sums[f"second {path}"] / self.positions(path)

    def turn(self, path: str) -> float:
        """Mean 1 − cosine between what enters a part and what leaves it.

        Raises:
            DataError: the data never reached it.
        """
        check_seen(path, self.positions(path))
        return max(float(self.sums[f"turn {path}"]) / self.positions(path), 0.0)

    def gradient(self, name: str) -> Tensor:
        """Mean gradient of the loss by a parameter, in its shape."""
        return self.sums[f"gradient {name}"] / self.feeds

    def fisher(self, name: str) -> Tensor:
        """Mean square of a feed's gradient by a parameter, in its shape."""
        return self.sums[f"fisher {name}"] / self.feeds

    def gate(self, unit: Unit) -> float:
        """Mean |∂loss/∂gate| of a unit."""
        name, position = self.gated[unit.name]
        return float(self.sums[name][position]) / self.feeds


def collect(
    module: nn.Module,
    task: Task | None,
    examples: Examples[Train] | None,
    wanted: Wanted,
    *,
    batch_size: int = 8,
    scratch: Path | None = None,
    progress: Progress = SILENT,
) -> Statistics:
    """Run the examples once and sum up what is wanted.

    Args:
        task: whose loss is differentiated; may be None where no gradient is wanted.
        scratch: where sums are saved on the way; None: nowhere.

    Raises:
        DataError: there are no training examples, or gradients are wanted and they have no loss.
        ModelError: a weight or an answer is NaN or infinite.
    """
    check_weights(module)
    if wanted == Wanted():
        return Statistics()
    found = trainable(examples)
    size = 1 if wanted.backward else batch_size
    names, order = forward_names(module), own_order(found)
    statistics, done = _resumed(scratch)
    rows = rows_of(wanted.gates)
    statistics.gated |= {u.name: (row.name, i) for row in rows for i, u in enumerate(row.units)}
    saved = time.monotonic()
    observers = _observers(module, wanted, statistics)
    batches = -(-len(order) // size)
    with (
        evaluating(module),
        observing(observers) as masked_by,
        _differentiable(module) if wanted.backward else torch.no_grad(),
        gated(module, wanted.gates) as gates,
        progress.stage("score importance", batches) as bar,
    ):
        bar.advance(done)
        for number, batch in enumerate(found.batches(size, order)):
            if number < done:
                continue
            feeds = tensors(batch, names)
            masked_by(feeds.get("attention_mask"))
            outputs = module(**feeds)
            answers = named_outputs(outputs)
            check_outputs(module, answers, lambda feeds=feeds: module(**feeds))  # type: ignore[misc]
            if wanted.backward:
                labels = None if batch.labels is None else torch.from_numpy(batch.labels)
                loss = task.task_loss(outputs, feeds, labels) if task is not None else None
                if loss is None:
                    raise no_loss()
                _differentiate(module, loss, wanted, gates, rows, statistics)
            statistics.feeds += len(batch.index)
            bar.advance()
            if scratch is not None and time.monotonic() - saved > SAVE_S:
                _save(scratch, statistics, number + 1)
                saved = time.monotonic()
    return statistics


def trainable(examples: Examples[Train] | None) -> Examples[Train]:
    """The examples, which must be there and meant for training.

    Raises:
        DataError: they are not.
    """
    if examples is None or not examples.feeds:
        raise DataError(
            "pruning.criterion",
            "needs training examples to look at activations",
            got="none",
            remedy="give data, or set criterion = 'magnitude'.",
        )
    examples.require(Train)
    return examples


def no_loss() -> DataError:
    """The error for data from which no loss can be told."""
    return DataError(
        "pruning.criterion",
        "needs a loss to differentiate, and these examples have no labels for one",
        remedy="give labels, or take wanda, obs or ablation.",
    )


def _observers(
    module: nn.Module, wanted: Wanted, statistics: Statistics
) -> dict[nn.Module, Callable[[Tensor, Tensor], None]]:
    def of_inputs(path: str, second: bool) -> Callable[[Tensor, Tensor], None]:
        def see(entered: Tensor, left: Tensor) -> None:
            rows = entered.detach()  # (positions, in)
            statistics.add(f"count {path}", torch.tensor(rows.shape[0]))
            if second:
                statistics.add(f"second {path}", rows.T @ rows)  # exact enough within a batch
            else:
                statistics.add(f"energy {path}", rows.double().square().sum(0))

        return see

    def of_stream(path: str) -> Callable[[Tensor, Tensor], None]:
        def see(entered: Tensor, left: Tensor) -> None:
            before, after = entered.detach().double(), left.detach().double()
            turns = 1 - nn.functional.cosine_similarity(before, after, dim=-1)
            statistics.add(f"count {path}", torch.tensor(turns.numel()))
            statistics.add(f"turn {path}", turns.sum())

        return see

    found = {
        module.get_submodule(path): of_inputs(path, path in wanted.second)
        for path in sorted(wanted.energy | wanted.second)
    }
    return found | {module.get_submodule(path): of_stream(path) for path in sorted(wanted.turn)}


def _differentiate(
    module: nn.Module,
    loss: Tensor,
    wanted: Wanted,
    gates: Gates,
    rows: Sequence[Row],
    statistics: Statistics,
) -> None:
    """Add one feed's gradients."""
    weights = {n: p for n, p in module.named_parameters() if n in wanted.gradient}
    slopes = torch.autograd.grad(loss, [*weights.values(), *gates.values()], allow_unused=True)
    for (name, weight), slope in zip(weights.items(), slopes, strict=False):
        known = torch.zeros_like(weight) if slope is None else slope
        statistics.add(f"gradient {name}", known)
        statistics.add(f"fisher {name}", known.square())
    at = dict(zip(gates, slopes[len(weights) :], strict=True))
    for row in rows:
        effects = torch.zeros(len(row.units), dtype=torch.float64)
        gate = at.get(row.place)
        if gate is not None:  # else this feed did not come by
            effects.index_add_(0, row.unit, gate.double()[row.feature])
        statistics.add(row.name, effects.abs_())


@contextmanager
def _differentiable(module: nn.Module) -> Iterator[None]:
    """Every parameter takes part in gradients meanwhile."""
    before = {name: value.requires_grad for name, value in module.named_parameters()}
    with torch.enable_grad():
        module.requires_grad_(True)
        try:
            yield
        finally:
            for name, value in module.named_parameters():
                value.requires_grad_(before[name])


def _save(scratch: Path, statistics: Statistics, done: int) -> None:
    state = {"done": done, "feeds": statistics.feeds, "sums": statistics.sums}
    save_checkpoint(scratch, "statistics", state)


def _resumed(scratch: Path | None) -> tuple[Statistics, int]:
    """What a stopped run summed up, and after how many batches."""
    state = load_checkpoint(scratch, "statistics") if scratch is not None else None
    if state is None:
        return Statistics(), 0
    return Statistics(state["feeds"], state["sums"]), state["done"]
