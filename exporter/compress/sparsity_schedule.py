"""A sparsity that rises while the student learns to do without what is gone.

The polynomial schedule of Zhu & Gupta (arXiv:1710.01878): steep at first, when many weights are
redundant, and flat in the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from exporter.compress.batching import few_feeds
from exporter.compress.hooks import Hook
from exporter.compress.importance import prunable_weights, score_weights
from exporter.compress.sparsity import (
    Scope,
    apply_zeros,
    check_group,
    choose_zeros,
    sparsity_of,
)
from exporter.errors import ModelError
from exporter.models.examples import Examples, Train
from exporter.models.tasks import Task
from exporter.recipe import Pruning

RAMP = 0.6  # share of the steps in which sparsity rises; the rest recovers
BATCH = 8  # feeds that are scored together
UPDATES = 20  # times that zeros are chosen anew, at most

Score = Callable[[nn.Module], Mapping[str, Tensor]]


def rising(initial: float, final: float, done: float, power: float = 3.0) -> float:
    """Sparsity when a share `done` of the ramp is behind: s_f + (s_i − s_f)(1 − t)^power."""
    left: float = (1.0 - min(max(done, 0.0), 1.0)) ** power
    return final + (initial - final) * left


class RisingSparsity(Hook):
    """Raises the share of zeros step by step; a weight that is zero stays so.

    Zeros are exact after every step, whatever the optimizer's momentum and weight decay would do.
    """

    def __init__(
        self,
        final: float,
        score: Score,
        *,
        scope: Scope = "layer",
        group: int | None = None,
        identity: str = "magnitude",
    ) -> None:
        """Set up a rise from the student's sparsity to `final`.

        Args:
            final: share of zeros in the end, above 0 and below 1.
            score: importance of the weights as they are, asked at each update.
            scope, group: as for `choose_zeros`.
            identity: what `score` is.
        """
        self.identity = f"rising sparsity {final} {scope} {group} {identity} {RAMP} {UPDATES}"
        self._final = final
        self._score = score
        self._scope = scope
        self._group = group
        self._initial: float | None = None
        self._zeros: dict[str, Tensor] = {}

    def before_step(self, step: int, steps: int, module: nn.Module) -> None:
        """Choose zeros anew at the steps of the schedule."""
        if self._initial is None:
            self._initial = sparsity_of(module)
        ramp = ramp_steps(steps)
        apart = max(1, ramp // UPDATES)
        if step > ramp or (step % apart and step != ramp):
            return
        share = max(rising(self._initial, self._final, step / ramp), self._initial)
        scores = {name: score.clone() for name, score in self._score(module).items()}
        for name, chosen in self._zeros.items():
            # Below every other: what is zero has learnt nothing since and cannot come back.
            scores[name] = (scores[name] + _TINY).masked_fill(chosen, 0.0)
        self._zeros = choose_zeros(module, share, scores, scope=self._scope, group=self._group)
        apply_zeros(module, self._zeros)

    def before_update(self, module: nn.Module) -> None:
        """What is zero gets no gradient: it would only shorten the others' by clipping."""
        parameters = dict(module.named_parameters(remove_duplicate=False))
        for name, chosen in self._zeros.items():
            gradient = parameters[name].grad
            if gradient is not None:
                gradient.masked_fill_(chosen, 0.0)

    def after_step(self, module: nn.Module) -> None:
        """Undo what momentum from before made of weights that are zero now."""
        apply_zeros(module, self._zeros)

    def settled(self, step: int, steps: int) -> bool:
        """Whether all zeros that were asked for are there."""
        return step >= ramp_steps(steps)

    def state(self) -> dict[str, Any]:
        """The zeros so far, and what the rise began at."""
        return {"zeros": dict(self._zeros), "initial": self._initial}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` told."""
        self._zeros = dict(state["zeros"])
        self._initial = state["initial"]


_TINY = torch.finfo(torch.float32).tiny


def ramp_steps(steps: int) -> int:
    """How many of `steps` the sparsity rises in."""
    return max(1, math.ceil(RAMP * steps))


def sparsity_hook(
    module: nn.Module, task: Task, examples: Examples[Train], pruning: Pruning
) -> RisingSparsity | None:
    """What raises the sparsity of `module` while it is fine-tuned; None where nothing does.

    Importance is scored anew for the weights as they are at each update.

    Raises:
        ModelError: the pattern of zeros does not divide a width, or there is nothing to set.
    """
    if not (pruning.zero_share and pruning.sparsity_schedule == "cubic"):
        return None
    if not prunable_weights(module):
        raise ModelError(
            "pruning.sparsity_schedule",
            "needs matrices whose weights may become zero",
            got="none",
            remedy="leave sparsity out.",
        )
    check_group(module, pruning.sparsity_group)
    chosen = few_feeds(examples, pruning.examples)
    return RisingSparsity(
        pruning.zero_share,
        lambda now: score_weights(now, chosen, pruning.criterion, task=task, batch_size=BATCH),
        scope=pruning.sparsity_scope,
        group=pruning.sparsity_group,
        identity=f"{pruning.criterion} {len(chosen.feeds)}",
    )
