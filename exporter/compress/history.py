"""History: how a run of fine-tuning went, look by look, and what it came to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from exporter.compress.looks import Look
from exporter.errors import RecoveryError


@dataclass(frozen=True)
class FineTuneResult:
    """The module as it was best on development data.

    Attributes:
        module: the student, trained in place.
        history: one entry a look: `step`, `train_loss` (None at step 0), `development_loss`;
            with a teacher also `gap` and `gap_high`, the loss beyond the teacher's and its
            upper bound.
        best_step: the look that `module` is from; 0 if training never helped.
        development_loss: at that look; the task's loss, or the distillation loss where the
            data has no labels. None if there was no loss to look at.
        gap_high: at that look; None without a teacher.
        trials: development loss by weight of distillation, where trials chose it.
    """

    module: nn.Module
    history: list[dict[str, float | int | None]]
    best_step: int
    development_loss: float | None
    gap_high: float | None = None
    trials: dict[float, float] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """All but the module, JSON-ready; what there is none of is left out."""
        found: dict[str, Any] = {
            "history": self.history,
            "best_step": self.best_step,
            "development_loss": self.development_loss,
        }
        if self.gap_high is not None:
            found["gap_high"] = self.gap_high
        if self.trials:
            found["trials"] = {f"{weight:g}": loss for weight, loss in self.trials.items()}
        return found


def result_of(student: nn.Module, state: Mapping[str, Any]) -> FineTuneResult:
    best_step = int(state["best_step"])
    best = next(entry for entry in state["history"] if entry["step"] == best_step)
    return FineTuneResult(
        student.eval(),
        state["history"],
        best_step,
        best["development_loss"],
        best.get("gap_high"),
    )


def entry_of(step: int, train: float | None, found: Look) -> dict[str, float | int | None]:
    finite = found.loss if math.isfinite(found.loss) else None
    entry: dict[str, float | int | None] = {"step": step}
    entry |= {"train_loss": train, "development_loss": finite}
    if found.gap is not None and math.isfinite(found.gap):
        entry |= {"gap": found.gap, "gap_high": found.gap_high}
    return entry


def refuse_unsound(first: Look) -> None:
    if not math.isfinite(first.loss):
        raise RecoveryError(
            "fine-tune: the student's loss on development data is not a number before training; "
            "remove less, or look for weights that are not finite."
        )
    if first.gap is not None and not math.isfinite(first.gap):
        raise RecoveryError(
            "fine-tune: the teacher's loss on development data is not a number; "
            "look for weights that are not finite."
        )
