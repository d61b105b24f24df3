"""What both classification tasks share: scores and losses over (batch, classes) logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from exporter.errors import DataError
from exporter.models.examples import Batch, Examples, Feeds, Outputs
from exporter.models.runner import Run, main_output, named_outputs
from exporter.models.scores import Scores
from exporter.models.scoring import score_feeds
from exporter.models.tasks import SILENT
from exporter.models.tokens import divergence
from exporter.progress import Progress

if TYPE_CHECKING:
    import torch


def score_classes(
    task: str,
    run: Run,
    examples: Examples[Any],
    *,
    batch_size: int,
    progress: Progress,
    workers: int,
) -> Scores:
    """`correct`, `prediction`, `label` and `nll` of each example, and its log-probabilities.

    Raises:
        DataError: the examples have no labels, or the model knows fewer classes than they name.
    """
    labels = examples.labels
    if labels is None:
        raise DataError(
            f"the {examples.role.name} split", "must have labels", remedy="add a label column."
        )

    def reduce(outputs: Outputs, batch: Batch) -> list[NDArray[np.float64]]:
        logits = np.asarray(main_output(outputs, "logits"), np.float64)
        logits = logits.reshape(len(batch.index), -1)  # (batch, classes)
        wanted = labels[[examples.owner[i] for i in batch.index]]
        if wanted.max() >= logits.shape[1]:
            raise DataError(
                f"the {examples.role.name} split",
                f"labels must be below the model's {logits.shape[1]} classes",
                got=int(wanted.max()),
                remedy="give data with the model's labels.",
            )
        with np.errstate(invalid="ignore", over="ignore"):
            top = logits.max(1, keepdims=True)
            total = top[:, 0] + np.log(np.exp(logits - top).sum(1))  # (batch,)
            shares = logits - total[:, None]  # (batch, classes), log-probabilities
        # A row with NaN has no prediction: -1, which is never right.
        broken = np.isnan(logits).any(1)
        prediction = np.where(broken, -1, np.argmax(np.where(np.isnan(logits), -np.inf, logits), 1))
        return list(np.column_stack([prediction, shares]))

    found: list[NDArray[np.float64]] = score_feeds(
        run, examples, reduce, batch_size=batch_size, progress=progress, workers=workers
    )
    rows = np.stack(found)  # (n, 1 + classes)
    prediction, shares = rows[:, 0], rows[:, 1:]
    label = labels[list(examples.owner)]
    values = {
        "correct": (prediction == label).astype(np.float64),
        "prediction": prediction,
        "label": label.astype(np.float64),
        "nll": -shares[np.arange(len(label)), label],
    }
    arrays = {"log_probabilities": shares.astype(np.float32)}
    return Scores(task, examples.ids, values, arrays, examples.slices)


class Classifier:
    """The half of a task that is the same whatever is classified."""

    name = ""
    metrics = ("accuracy_drop_points",)
    joint = False

    def score(
        self,
        run: Run,
        examples: Examples[Any],
        *,
        against: Run | None = None,
        batch_size: int = 1,
        progress: Progress = SILENT,
        workers: int = 1,
    ) -> Scores:
        """`correct`, `prediction`, `label` and `nll` of each example."""
        return score_classes(
            self.name, run, examples, batch_size=batch_size, progress=progress, workers=workers
        )

    def relate(self, reference: Scores, candidate: Scores) -> Scores:
        """The candidate's scores with `kl`, its divergence from the reference in nats."""
        theirs, ours = (s.arrays["log_probabilities"] for s in (reference, candidate))
        if ours.shape != theirs.shape or candidate.ids != reference.ids:
            raise DataError(
                "the evidence",
                "both models must answer the same examples with as many classes",
                got=f"{ours.shape} and {theirs.shape}",
                remedy="score both models on the same examples.",
            )
        kl = divergence(theirs, ours)
        return replace(candidate, values={**candidate.values, "kl": kl})

    def task_loss(
        self, outputs: Any, feeds: Mapping[str, torch.Tensor], labels: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Cross-entropy over the classes."""
        import torch

        if labels is None:
            return None
        logits = main_output(named_outputs(outputs), "logits")
        return torch.nn.functional.cross_entropy(logits.float(), labels)

    def distill_loss(
        self,
        student_outputs: Any,
        teacher_outputs: Any,
        feeds: Mapping[str, torch.Tensor],
        temperature: float,
    ) -> torch.Tensor:
        """KL from teacher to student over softened classes, times T² (Hinton et al., 2015)."""
        return distillation(
            main_output(named_outputs(student_outputs), "logits"),
            main_output(named_outputs(teacher_outputs), "logits"),
            temperature,
        )

    def loss_terms(self, feed: Feeds) -> tuple[int, int]:
        """One answer a feed."""
        return 1, 1


def distillation(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL(teacher ‖ student) at a temperature, mean over rows of (rows, classes), times T²."""
    import torch

    return torch.nn.functional.kl_div(
        torch.log_softmax(student.float() / temperature, -1),
        torch.log_softmax(teacher.detach().float() / temperature, -1),
        reduction="batchmean",
        log_target=True,
    ) * (temperature**2)
