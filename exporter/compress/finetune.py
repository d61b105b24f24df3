"""Fine-tune: recover a pruned module by distillation from the original plus the task's own loss.

A run is a function of its arguments: stopped and started again it goes on from its last
checkpoint and ends in the same weights, bit for bit. Under `torchrun` several processes take the
same steps together (`replicas`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from exporter.compress.history import FineTuneResult
from exporter.compress.hooks import Hook
from exporter.compress.matching import check_labels, check_some, check_teacher, has_own_loss
from exporter.compress.replicas import check_parts, join
from exporter.compress.training import Training
from exporter.errors import DataError, ModelError
from exporter.models.examples import Development, Examples, Train
from exporter.models.tasks import SILENT, Task
from exporter.progress import Progress, Silent
from exporter.recipe import FineTune

TRIAL_WEIGHTS = (1.0, 0.5)  # distillation alone, and with the task's loss added
TRIAL = 0.1  # share of the steps that each trial takes


def fine_tune(
    student: nn.Module,
    teacher: nn.Module | None,
    task: Task,
    train: Examples[Train],
    development: Examples[Development],
    options: FineTune,
    *,
    seed: int,
    scratch: Path,
    layers: Sequence[int] | None = None,
    hooks: Sequence[Hook] = (),
    progress: Progress = SILENT,
) -> FineTuneResult:
    """Train `student` in place and return it as it was best on development data.

    Args:
        teacher: the unpruned model; None trains on the task's loss alone.
        scratch: directory for the checkpoint that a stopped run goes on from.
        layers: for each of the student's layers, the teacher's that it came from, where hidden
            states are compared; None spreads them evenly.
        hooks: what shapes the student meanwhile. The best look is one at which all had settled.

    Weights of a sparsified student that are zero stay exactly zero. Without a teacher and
    without labels there is nothing to learn from: the student is returned as it is. Called by
    each process that `torchrun` started, all return the same; the first alone writes and speaks.

    Raises:
        DataError: no examples, or some of another role, such as test examples; labels that the
            student has no class for, or none where only they are to be learned from.
        ModelError: the teacher's answers are not comparable to the student's, or hooks are to
            shape weights that low-rank adapters leave frozen.
        RecoveryError: the student's loss is not a number before training.
    """
    train.require(Train)
    development.require(Development)
    for examples in (train, development):
        check_some(examples)
        check_labels(student, examples)
    labelled = has_own_loss(task, train)
    if teacher is None and not labelled and has_own_loss(task, development):
        raise DataError(
            "the train split",
            "must have labels: without a teacher there is nothing else to learn from",
            got="none, though development data has some",
            remedy="label all of the data, or give a teacher.",
        )
    if hooks and options.rank is not None:
        raise ModelError(
            "fine_tune.rank",
            "trains adapters alone; rising sparsity and rounding shape the weights themselves",
            remedy="leave rank out, or set the zeros at once.",
        )
    if teacher is not None:
        check_teacher(student, teacher, task)
        if options.distill_weight == 0 and not labelled:
            raise DataError(
                "fine_tune.distill_weight",
                "of 0 trains on the task's loss alone, which needs labels",
                got="none",
                remedy="raise it, or give labelled data.",
            )
    accelerator = join()
    check_parts(
        train,
        options.batch_size,
        processes=accelerator.num_processes,
        accumulate=options.accumulate,
    )
    if not accelerator.is_main_process:
        progress = Silent()
    if options.batch_size > len(train.feeds):
        progress.note(
            f"each step sees all {len(train.feeds)} training examples: "
            f"the batch size of {options.batch_size} is larger"
        )
    training = Training(accelerator, teacher, task, train, development, layers, seed, hooks)
    if teacher is None or options.distill_weight != "auto":
        return training.run(student, options, scratch, progress)
    if not labelled:
        return training.run(student, _weighing(options, 1.0), scratch, progress)
    trials = {}
    steps = max(1, round(options.steps * TRIAL))
    for weight in TRIAL_WEIGHTS:
        short = _weighing(options, weight, steps=steps, evaluate_every=steps)
        # Together, so that what a hook holds of its student is that of the copy.
        own, shaping = copy.deepcopy((student, hooks))
        tried = replace(training, hooks=shaping).run(
            own, short, scratch / f"trial-{weight}", progress
        )
        trials[weight] = _last_loss(tried)
    best = min(trials, key=lambda weight: trials[weight])
    told = ", ".join(f"{weight:g}: {loss:.4g}" for weight, loss in trials.items())
    progress.note(f"weight of distillation: {best:g} (development loss after a trial: {told})")
    result = training.run(student, _weighing(options, best), scratch, progress)
    return replace(result, trials=trials)


def _weighing(options: FineTune, weight: float, **changes: int) -> FineTune:
    return options.model_copy(update={"distill_weight": weight, **changes})


def _last_loss(result: FineTuneResult) -> float:
    found = result.history[-1]["development_loss"]
    return math.inf if found is None or len(result.history) < 2 else found
