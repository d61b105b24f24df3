"""Depth: which layers can go together, found by leaving them out.

Layers stand in for one another: of two that each can go, both may not. So the layer whose removal
moves the answers least goes first, and each next one is sought with those already out. Exact
ablation, as in Shortened LLaMA (Kim et al., arXiv:2402.02834), repeated after each removal; it
costs a few batches a layer and step.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from functools import partial

import numpy as np
from torch import nn

from exporter.compress.divergence import divergences
from exporter.compress.importance import Scored, shares
from exporter.compress.masking import masked
from exporter.compress.structure import Structure
from exporter.compress.units import Unit, structure_units
from exporter.models.examples import Examples, Train
from exporter.models.tasks import SILENT, Task
from exporter.progress import Progress

BATCHES = 8
MOST_RUNS = 256  # of all layers in all steps; beyond, layers are ranked by what each does alone


def rank_layers(
    module: nn.Module,
    structure: Structure,
    task: Task,
    examples: Examples[Train],
    gone: int,
    *,
    batch_size: int,
    progress: Progress = SILENT,
) -> Scored:
    """Importance of each layer, (layers,), 0 to 1: how far the answers have moved when it goes.

    The `gone` least are those that are best left out together; layers that must stay have 1.

    Args:
        gone: layers that will be removed.
    """
    units = structure_units(module, structure, "layer")
    left = [i for i in range(structure.layers) if i not in structure.pinned]
    scores = np.ones(structure.layers)
    rounds = gone if gone * len(left) <= MOST_RUNS else 0
    out: list[int] = []
    least = 0.0

    def found() -> list[float]:
        """Where the answers are without each that is left, further than with only `out` gone."""
        sets = [[*out, i] for i in left]
        masks = [partial(_without, module, [units[j] for j in some]) for some in sets]
        moved = divergences(module, task, examples, batch_size, masks, most=BATCHES)
        # Not nearer, also where a layer did harm.
        return [max(v, least) if math.isfinite(v) else math.inf for v in moved]

    with progress.stage("leave out layers", rounds + 1) as bar:
        for _ in range(rounds):
            without = found()
            which = int(np.argmin(without))
            least = scores[left[which]] = without[which]
            out.append(left.pop(which))
            bar.advance()
        for i, value in zip(left, found(), strict=True):
            scores[i] = value * (1 + 1e-6) + 1e-12  # above what went, also at equal distance
        bar.advance()
    finite = scores[np.isfinite(scores)]
    scores[~np.isfinite(scores)] = 2 * finite.max(initial=1.0)
    scores[list(structure.pinned)] = scores.max(initial=1.0)
    return shares(scores)


def _without(module: nn.Module, units: list[Unit]) -> ExitStack:
    """The module without several layers meanwhile."""
    with ExitStack() as off:
        for unit in units:
            off.enter_context(masked(module, unit))
        return off.pop_all()
