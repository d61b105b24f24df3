"""Rounds: a bold cut taken in several, so that each removes little enough to recover from.

Minitron (arXiv:2407.14679) found that pruning and distilling in turns keeps more than one cut;
a round removes at most a third of the parameters, embeddings left out. Each round scores
importance anew, on the model as the round before left it.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from exporter.compress.prune import prune
from exporter.errors import ProfileError
from exporter.models.examples import Examples, Train
from exporter.models.tasks import Task
from exporter.recipe import Pruning

# Ratios of a Pruning that remove units; sparsity removes none and waits for the last round.
PARTS = ("ffn", "heads", "layers", "hidden")
_WHOLE: dict[str, Any] = {"sparsity": 0.0, "sparsity_pattern": "", "sparsity_schedule": "once"}
_SHAPE: dict[str, Any] = {"criterion": "magnitude", "compensate": "none", **_WHOLE}
MORE = 3  # rounds beyond the fewest that are tried: a layer cannot be removed in halves
SLACK = 0.01  # of the share, for widths that are rounded


def plan_rounds(
    module: nn.Module, task: Task, examples: Examples[Train], pruning: Pruning, largest: float
) -> tuple[Pruning, ...]:
    """The cut in as few rounds as keep each below `largest`; just `pruning` if one does.

    Ratios of a round are relative to the model that the round before leaves, and keep the same
    share each time; the last ends at the widths that one cut would end at. Where units are too
    large for that (two layers of which one goes), the rounds whose largest is smallest are taken.

    Args:
        largest: share of the parameters (embeddings left out) that a round may remove.

    Raises:
        ProfileError: a ratio would leave nothing.
    """
    if not pruning.blocks or pruning.channels or largest >= 1:
        return (pruning,)
    # How much goes does not depend on what is important; magnitude needs no data.
    shape = pruning.model_copy(update=_SHAPE)
    one = examples.head(1)
    result = prune(module, task, one, shape)
    whole = body_parameters(module)
    share = 1 - body_parameters(result.module) / whole
    ends = {part: result.removed[part] for part in PARTS if part in result.removed}
    if not ends or share <= largest + SLACK:
        return (pruning,)
    fewest = max(2, math.ceil(math.log(1 - share) / math.log(1 - largest) - 1e-9))
    found: list[tuple[float, tuple[Pruning, ...]]] = [(share, (pruning,))]
    for count in range(fewest, fewest + MORE + 1):
        found.append(_divided(module, task, one, pruning, ends, count))
        if found[-1][0] <= largest + SLACK:
            return found[-1][1]
    return min(found, key=lambda plan: (round(plan[0], 3), len(plan[1])))[1]


def _divided(
    module: nn.Module,
    task: Task,
    examples: Examples[Train],
    pruning: Pruning,
    ends: dict[str, dict[str, Any]],
    count: int,
) -> tuple[float, tuple[Pruning, ...]]:
    """The cut in `count` rounds, and the largest share that one of them removes."""
    widths = {part: int(end["before"]) for part, end in ends.items()}
    rounds: list[Pruning] = []
    shares: list[float] = []
    for number in range(1, count + 1):
        ratios = {}
        for part, end in ends.items():
            kept = (end["after"] / end["before"]) ** (number / count)
            ratios[part] = max(0.0, 1 - end["before"] * kept / widths[part])
        if not any(ratios.values()):
            continue
        rest = dict.fromkeys(PARTS, 0.0) | ratios
        try:
            this = pruning.model_copy(update=rest | (_WHOLE if number < count else {}))
            cut = prune(module, task, examples, this.model_copy(update=_SHAPE))
        except ProfileError:  # rounded to nothing left: fewer rounds will do
            return 1.0, (pruning,)
        if not cut.removed:
            continue
        shares.append(1 - body_parameters(cut.module) / body_parameters(module))
        for part in ends:
            widths[part] = int(cut.removed.get(part, {"after": widths[part]})["after"])
        module = cut.module
        rounds.append(this)
    ended = all(widths[part] == int(end["after"]) for part, end in ends.items())
    if not ended or not rounds:
        return 1.0, (pruning,)
    # A last round that removed no unit was left out; the one before it takes the zeros.
    zeros = {name: getattr(pruning, name) for name in _WHOLE}
    rounds[-1] = rounds[-1].model_copy(update=zeros)
    return max(shares), tuple(rounds)


def body_parameters(module: nn.Module) -> int:
    """Parameters without embeddings and what is tied to them, or a language model's output."""
    left_out = {
        id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()
    }
    head = getattr(module, "get_output_embeddings", lambda: None)()
    if head is not None:
        left_out |= {id(p) for p in head.parameters()}
    return sum(p.numel() for p in module.parameters() if id(p) not in left_out)
