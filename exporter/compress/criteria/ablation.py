"""Ablation: the change of the loss when a unit is really switched off; the judge of all others.

One module, no copies: each unit is masked, every example is answered, the unit comes back. The
loss is the task's own where examples have labels, else how far the answers are from those of the
whole model. What is done is written down unit by unit, so that a stopped run goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from exporter.compress.activations import evaluating, own_order, tensors
from exporter.compress.criteria import Scene, Scored
from exporter.compress.masking import masked
from exporter.compress.soundness import check_outputs, check_weights
from exporter.compress.statistics import Wanted, trainable
from exporter.compress.units import Unit
from exporter.models.examples import Examples, Train
from exporter.models.runner import forward_names, named_outputs
from exporter.models.tasks import Task

DONE = "ablation.jsonl"


class Ablation:
    """Really without, and measured."""

    def wants(self, module: nn.Module, units: Sequence[Unit], weights: bool) -> Wanted:
        """Nothing: it runs the module itself."""
        return Wanted()

    def units(self, scene: Scene, units: Sequence[Unit]) -> Scored:
        """|change of the mean loss| of each unit."""
        return np.abs(loss_changes(scene, units)[1])

    def weights(self, scene: Scene) -> dict[str, Tensor]:
        """One run a weight would take weeks."""
        raise NotImplementedError("ablation scores units, see exporter.recipe.CRITERIA")


def loss_changes(scene: Scene, units: Sequence[Unit]) -> tuple[float, Scored]:
    """Mean loss of all, and how much more it is without each unit, (units,); below 0: it did harm.

    Raises:
        DataError: there are no training examples.
        ModelError: a weight or an answer is NaN or infinite.
    """
    module, task = scene.module, scene.task
    assert task is not None
    check_weights(module)
    examples = trainable(scene.examples)
    known = _read(scene.scratch)
    with evaluating(module), torch.no_grad(), scene.progress.stage("ablate", len(units)) as bar:
        whole = known.get("")
        if whole is None:
            whole = mean_loss(module, task, examples)
            _write(scene.scratch, "", whole)
        changes = []
        for unit in units:
            loss = known.get(unit.name)
            if loss is None:
                loss = mean_loss(module, task, examples, unit)
                _write(scene.scratch, unit.name, loss)
            changes.append(loss - whole)
            bar.advance()
    return whole, np.asarray(changes, np.float64)


def mean_loss(
    module: nn.Module, task: Task, examples: Examples[Train], unit: Unit | None = None
) -> float:
    """Mean loss over feeds, each run alone: no sum depends on order or padding."""
    names = forward_names(module)
    total = 0.0
    off = masked(module, unit) if unit is not None else nullcontext()
    with off as back_on:
        for batch in examples.batches(1, own_order(examples)):
            feeds = tensors(batch, names)
            labels = None if batch.labels is None else torch.from_numpy(batch.labels)
            outputs = module(**feeds)
            if unit is None:
                check_outputs(module, named_outputs(outputs), lambda f=feeds: module(**f))  # type: ignore[misc]
            loss = task.task_loss(outputs, feeds, labels)
            if loss is None:
                with back_on() if back_on is not None else nullcontext():
                    whole = module(**feeds)
                loss = task.distill_loss(named_outputs(outputs), named_outputs(whole), feeds, 1.0)
            total += float(loss)
    return total / len(examples.feeds)


def _read(scratch: Path | None) -> dict[str, float]:
    """Losses that a stopped run wrote down: unit's name (empty: the whole module) -> loss."""
    if scratch is None or not (scratch / DONE).is_file():
        return {}
    whole, _, torn = (scratch / DONE).read_text(encoding="utf-8").rpartition("\n")
    if torn:  # by a kill; what is written next must not be joined to it
        (scratch / DONE).write_text(f"{whole}\n" if whole else "", encoding="utf-8")
    return {name: float(loss) for name, loss in map(json.loads, whole.splitlines())}


def _write(scratch: Path | None, name: str, loss: float) -> None:
    if scratch is None:
        return
    with (scratch / DONE).open("a", encoding="utf-8") as file:
        file.write(json.dumps([name, loss]) + "\n")
        file.flush()
        os.fsync(file.fileno())


CRITERION = Ablation()
