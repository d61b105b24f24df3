"""Criterion: one way to tell how much the model's performance hangs on a unit.

A criterion NAME lives in one file here, `NAME.py` (dashes become underscores), as `CRITERION`,
and is listed in `exporter.recipe.CRITERIA` with what it can score.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from exporter.compress.matrices import is_matrix, prunable_weights, rows_axis
from exporter.compress.statistics import Statistics, Wanted
from exporter.compress.units import Kind, Slice, Unit, canonical_names
from exporter.errors import ProfileError
from exporter.models.examples import Examples, Train
from exporter.models.tasks import SILENT, Task
from exporter.progress import Progress
from exporter.recipe import CRITERIA

Scored = NDArray[np.float64]


@dataclass(frozen=True)
class Scene:
    """A module, and what is known of it.

    Attributes:
        task, examples: for criteria that run the module themselves.
        statistics: what the criteria wanted, summed up.
        damping: share of the mean diagonal that is added to a Hessian; None: the default, and no
            Hessian of too little data.
        scratch: where a long criterion keeps its progress; None: nowhere.
    """

    module: nn.Module
    task: Task | None = None
    examples: Examples[Train] | None = None
    statistics: Statistics = field(default_factory=Statistics)
    damping: float | None = None
    scratch: Path | None = None
    progress: Progress = SILENT


class Criterion(Protocol):
    """Scores units, and single weights where it can."""

    def wants(self, module: nn.Module, units: Sequence[Unit], weights: bool) -> Wanted:
        """What it needs to know to score these units and, with `weights`, every single weight."""

    def units(self, scene: Scene, units: Sequence[Unit]) -> Scored:
        """Effect of each unit, (units,), 0 for none; comparable within a kind."""

    def weights(self, scene: Scene) -> dict[str, Tensor]:
        """Effect of each prunable weight, by parameter name, float64 in the parameter's shape."""


def get_criterion(name: str) -> Criterion:
    """The criterion called `name`.

    Raises:
        ProfileError: there is none; the closest names are offered.
    """
    if name not in CRITERIA:
        close = difflib.get_close_matches(name, CRITERIA, n=2, cutoff=0.4)
        hint = f"did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
        raise ProfileError(
            "criterion",
            f"unknown criterion '{name}'",
            remedy=f"{hint}known: {', '.join(CRITERIA)}.",
        )
    module = importlib.import_module(f"exporter.compress.criteria.{name.replace('-', '_')}")
    criterion: Criterion = module.CRITERION
    return criterion


def can_score(name: str, kind: Kind) -> bool:
    """Whether a criterion has anything to say about units of a kind."""
    return kind in CRITERIA[name]


Owners = Mapping[
    str, tuple[str, nn.Module]
]  # weight's name -> path and layer that multiplies by it


def owners(module: nn.Module) -> Owners:
    """The layer that multiplies by each weight; the first, where several share one."""
    names = canonical_names(module)
    found: dict[str, tuple[str, nn.Module]] = {}
    for path, part in module.named_modules():
        if is_matrix(part):
            found.setdefault(names[f"{path}.weight" if path else "weight"], (path, part))
    return found


def readers(owned: Owners, unit: Unit) -> list[tuple[str, nn.Module, Slice]]:
    """The layers through which a unit acts: path, layer, and the slice of its weight.

    These are the layers that take the unit in. A unit that none takes in, such as rows of a
    matrix or a whole layer, acts through all of its matrices.
    """
    found = [(*owned[one.parameter], one) for one in unit.slices if one.parameter in owned]
    taking = [f for f in found if f[2].axis == 1 - rows_axis(f[1])]
    return taking or found


def paths_of(module: nn.Module, units: Sequence[Unit], weights: bool) -> frozenset[str]:
    """Paths of all layers through which units act; with `weights`, of all that may be sparse."""
    owned = owners(module)
    names = prunable_weights(module) if weights else ()
    return frozenset(path for unit in units for path, _, _ in readers(owned, unit)) | frozenset(
        name.removesuffix("weight").removesuffix(".") for name in names
    )


def parameters_of(module: nn.Module, units: Sequence[Unit], weights: bool) -> frozenset[str]:
    """Names of all parameters that units have slices of; with `weights`, of all matrices too."""
    names = canonical_names(module)
    found = {one.parameter for unit in units for one in unit.slices}
    return frozenset(
        found | {names[name] for name in (prunable_weights(module) if weights else ())}
    )
