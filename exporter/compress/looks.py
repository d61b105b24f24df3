"""Looks: how good a student is on development data, and how much worse than its teacher at most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from scipy.special import stdtrit

from exporter.compress.batching import development_batches
from exporter.compress.replicas import from_all
from exporter.compress.teaching import Answering
from exporter.models.examples import Batch, Development, Examples
from exporter.models.runner import named_outputs
from exporter.models.tasks import Task

CONFIDENCE = 0.95  # one-sided

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Look:
    """One look at development data.

    Attributes:
        loss: the task's, or the distillation loss where the data has no labels; NaN if some
            answer is not a number.
        gap: the loss minus the teacher's; None without a teacher.
        gap_high: upper bound of the gap, one-sided at CONFIDENCE; None without a teacher, or
            with fewer than two examples.
    """

    loss: float
    gap: float | None = None
    gap_high: float | None = None

    @property
    def score(self) -> float:
        """What the best look has least of: the loss; never NaN.

        Not the bound of the gap: it favours a student that does what the teacher does over one
        that is better.
        """
        return self.loss if math.isfinite(self.loss) else math.inf


class Looking:
    """The same development feeds looked at again and again, shared out among the processes."""

    def __init__(
        self,
        accelerator: Accelerator,
        task: Task,
        examples: Examples[Development],
        batch_size: int,
        teacher: Answering | None,
    ) -> None:
        self._accelerator = accelerator
        self._task = task
        self._owner = np.asarray(examples.owner, np.int64)
        self._batches = development_batches(examples, batch_size)
        self._teacher = teacher
        self._taught: Floats | None = None  # the teacher's losses, (feeds,), once they are known
        self._chosen = np.concatenate([b.index for b in self._batches])
        terms = np.asarray([task.loss_terms(examples.feeds[i]) for i in self._chosen], np.float64)
        self._terms = terms  # (feeds, 2)

    def __call__(self, student: Answering) -> Look | None:
        """Look with the student as it is now; None if there is no loss to compute."""
        found = self._losses(student, distilled=False)
        weights = self._terms[:, 0]
        taught = None
        if found is None and self._teacher is not None:
            found = self._losses(student, distilled=True)
            weights, taught = self._terms[:, 1], np.zeros(len(self._chosen))
        if found is None:
            return None
        if taught is None and self._teacher is not None:
            if self._taught is None:
                self._taught = self._losses(self._teacher, distilled=False)
            taught = self._taught
        loss = float((weights * found).sum() / weights.sum())
        if taught is None:
            return Look(loss)
        gap, high = gap_bound(found - taught, weights, self._owner[self._chosen])
        return Look(loss, gap, high)

    def _losses(self, answering: Answering, *, distilled: bool) -> Floats | None:
        """The loss of each feed, in the order of `_chosen`; None if the task has none."""
        answering.module.eval()
        process, processes = self._accelerator.process_index, self._accelerator.num_processes
        ours: list[list[float] | None] = []
        with torch.no_grad():
            for batch in self._batches[process::processes]:
                feeds = answering.feeds(batch)
                outputs = _by_row(named_outputs(answering(feeds)), len(batch.index))
                taught = None
                if distilled:
                    assert self._teacher is not None
                    answers = self._teacher(self._teacher.feeds(batch))
                    taught = _by_row(named_outputs(answers), len(batch.index))
                ours.append(self._by_feed(batch, feeds, outputs, taught, answering.labels(batch)))
        losses: list[list[float] | None] = [None] * len(self._batches)
        for first, theirs in enumerate(from_all(self._accelerator, ours)):
            losses[first::processes] = theirs
        found: list[float] = []
        for values in losses:
            if values is None:
                return None
            found += values
        return np.asarray(found, np.float64)

    def _by_feed(
        self,
        batch: Batch,
        feeds: dict[str, torch.Tensor],
        outputs: list[dict[str, torch.Tensor]],
        taught: list[dict[str, torch.Tensor]] | None,
        labels: torch.Tensor | None,
    ) -> list[float] | None:
        """The loss of each feed of a batch; None if the task has none."""
        values = []
        for row, own in enumerate(outputs):
            feed = {k: v[row : row + 1] for k, v in feeds.items()}
            if taught is not None:
                told = self._task.distill_loss(own, taught[row], feed, 1.0)
            else:
                label = None if labels is None else labels[row : row + 1]
                loss = self._task.task_loss(own, feed, label)
                if loss is None:
                    return None
                told = loss
            values.append(float(told))
        return values


def _by_row(outputs: dict[str, torch.Tensor], rows: int) -> list[dict[str, torch.Tensor]]:
    """The outputs of each row of a batch, still with a batch axis."""
    kept = {k: v for k, v in outputs.items() if v.ndim and v.shape[0] == rows}
    return [{k: v[row : row + 1] for k, v in kept.items()} for row in range(rows)]


def gap_bound(
    differences: Floats, weights: Floats, owner: Sequence[int] | NDArray[np.int64]
) -> tuple[float, float | None]:
    """The mean loss gap and its upper bound, from paired differences of the same feeds.

    Args:
        differences: the student's loss minus the teacher's, (feeds,).
        weights: what each feed's loss averages over, (feeds,).
        owner: the example of each feed; feeds of one document are one observation.

    Returns:
        (gap, bound): a ratio of sums over examples, with the standard error of its linearisation
        and Student's t. None for the bound with fewer than two examples.
    """
    _, cluster = np.unique(np.asarray(owner), return_inverse=True)
    d = np.bincount(cluster, differences * weights)  # (examples,)
    w = np.bincount(cluster, weights)
    gap, count = float(d.sum() / w.sum()), len(d)
    if count < 2:
        return gap, None
    spread = float(np.sqrt(((d - gap * w) ** 2).sum() * count / (count - 1)))
    return gap, gap + float(stdtrit(count - 1, CONFIDENCE)) * spread / float(w.sum())
