"""Task: what a row is, how it becomes feeds, and how good an answer to it is.

A task NAME lives in one file, `exporter/models/tasks/NAME.py` (dashes become underscores),
as `TASK`, and is listed in `exporter.recipe.TASKS`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from exporter.errors import ModelError
from exporter.models.examples import Examples, Feeds, Role, Split
from exporter.models.runner import Run
from exporter.models.scores import Scores
from exporter.progress import Progress, Silent
from exporter.recipe import TASKS

if TYPE_CHECKING:
    import torch

R = TypeVar("R", bound=Role)

SILENT = Silent()


class Task(Protocol):
    """Everything that differs between tasks.

    Attributes:
        name: one of `exporter.recipe.TASKS`.
        columns: canonical column -> names under which data may hold it, best first.
        optional: canonical columns that data may lack.
        metrics: budgets (keys of `BUDGET_KINDS`) that judge its quality.
        joint: how far a candidate diverges can only be told from both models' outputs at once,
            which are too large to keep: `score` wants `against`.
    """

    @property
    def name(self) -> str: ...

    @property
    def columns(self) -> dict[str, tuple[str, ...]]: ...

    @property
    def optional(self) -> frozenset[str]: ...

    @property
    def metrics(self) -> tuple[str, ...]: ...

    @property
    def joint(self) -> bool: ...

    def row_id(self, row: Mapping[str, Any]) -> str:
        """Content hash of what the model would see of a row; its label is not part of it."""

    def prepare(
        self,
        split: Split[R],
        preprocessor: Any,
        config: dict[str, Any],
        *,
        max_length: int,
        limit: int | None = None,
    ) -> Examples[R]:
        """Make rows into feeds; no torch.

        Args:
            preprocessor: tokenizer or image processor; None passes rows that already are
                feeds (arrays under the graph's input names) straight through.
            config: the checkpoint's configuration, {} if there is none.
            max_length: tokens a feed holds at most; the model's own limit caps it too.
            limit: examples at most, None for all.

        Raises:
            DataError: a row cannot become a feed, or none is left.
        """

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
        """Per-example scores, in the order of the examples.

        Args:
            against: the reference, for tasks that are `joint`; others ignore it.

        One feed at a time is the default because dynamic int8 takes one activation scale a
        tensor: batch mates and padding would change the answer. NaN outputs score as wrong,
        with `nll` NaN; they are judged later, not raised here.
        """

    def relate(self, reference: Scores, candidate: Scores) -> Scores:
        """The candidate's scores with those columns added that need the reference's."""

    def task_loss(
        self, outputs: Any, feeds: Mapping[str, torch.Tensor], labels: torch.Tensor | None
    ) -> torch.Tensor | None:
        """The task's own loss on a batch, a scalar; None where data has no labels for one."""

    def distill_loss(
        self,
        student_outputs: Any,
        teacher_outputs: Any,
        feeds: Mapping[str, torch.Tensor],
        temperature: float,
    ) -> torch.Tensor:
        """How far the student is from the teacher on a batch, a scalar; padding left out."""

    def loss_terms(self, feed: Feeds) -> tuple[int, int]:
        """What `task_loss` and `distill_loss` average over in one unpadded feed: losses of parts
        of a batch, weighted by it, add up to the loss of the batch. 0 for a loss that there is
        none of.
        """

    def example_feeds(
        self, config: dict[str, Any], preprocessor: Any, *, batch: int, length: int
    ) -> Feeds:
        """Plausible seeded inputs for export, parity and timing; `length` in tokens.

        Raises:
            ModelError: neither configuration nor preprocessor tells their shapes.
        """


def get_task(name: str) -> Task:
    """The task called `name`.

    Raises:
        ModelError: there is none; the closest names are offered.
    """
    if name not in TASKS:
        close = difflib.get_close_matches(name, TASKS, n=2, cutoff=0.4)
        hint = f"did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
        raise ModelError(
            "--task", f"unknown task '{name}'", remedy=f"{hint}known: {', '.join(TASKS)}."
        )
    module = importlib.import_module(f"exporter.models.tasks.{name.replace('-', '_')}")
    task: Task = module.TASK
    return task
