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
    greedy = gone * len(left) <= MOST_RUNS
    steps = gone if greedy else 1
    out: list[int] = []
    least = 0.0
    with progress.stage("leave out layers", steps + 1) as bar:
        for step in range(steps + 1):
            last = step == steps
            if last and not (greedy and gone):
                break
            sets = [[*out, i] for i in left]
            masks = [partial(_without, module, [units[j] for j in some]) for some in sets]
            moved = divergences(module, task, examples, batch_size, masks, most=BATCHES)
            # Further out than what went before, also where a layer did harm.
            found = [max(v, least) if math.isfinite(v) else math.inf for v in moved]
            if last or not greedy:
                for i, value in zip(left, found, strict=True):
                    scores[i] = value * (1 + 1e-6) + 1e-12 if last else value
            else:
                best = int(np.argmin(found))
                least = scores[left[best]] = found[best]
                out.append(left.pop(best))
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
