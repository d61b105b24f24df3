"""What importance came to, as data: every unit's share by every criterion, judged by ablation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

ORACLE = "ablation"
FEWEST = 4  # units from which a correlation says anything


@dataclass(frozen=True)
class KindScores:
    """All units of one kind.

    Attributes:
        kind: `layer`, `head`, ...
        units: their names.
        layers: the layer that each is in; None for none.
        importance: criterion -> share of the largest of this kind, (units,); None for units
            that were not ablated, which ablation does not know.
        loss_change: mean loss without each unit less the whole model's, in the loss's unit; below
            0 where the unit does harm; None where it was not ablated, or nothing but NaN was left
            without it. Empty without ablation.
        spearman: criterion -> rank correlation of its importance with ablation's; None where too
            few units were ablated, or one of the two tells none apart.
    """

    kind: str
    units: tuple[str, ...]
    layers: tuple[int | None, ...]
    importance: Mapping[str, tuple[float | None, ...]]
    loss_change: tuple[float | None, ...]
    spearman: Mapping[str, float | None]

    def known(self, criterion: str) -> NDArray[np.float64]:
        """A criterion's importance, (units,), NaN where it is not known."""
        values = self.importance[criterion]
        return np.asarray([np.nan if v is None else v for v in values], np.float64)

    @property
    def shown(self) -> str:
        """The criterion that speaks for the kind: ablation where every unit was ablated."""
        if ORACLE in self.importance and None not in self.importance[ORACLE]:
            return ORACLE
        ranked = {c: r for c, r in self.spearman.items() if r is not None and c != ORACLE}
        if ranked:
            return max(ranked, key=lambda c: ranked[c])
        return next((c for c in self.importance if c != ORACLE), ORACLE)


@dataclass(frozen=True)
class Selected:
    """What would stay of one kind.

    Attributes:
        kept: units above the threshold, within the ratio or within the budget.
        uniform: units that each layer keeps, where every layer keeps equally many: as many as
            the layer that keeps most. None for kinds that are in no layer.
    """

    kind: str
    criterion: str
    total: int
    kept: int
    uniform: int | None


@dataclass(frozen=True)
class ImportanceReport:
    """Importance of the parts of one model.

    Attributes:
        feeds: training feeds that were looked at.
        loss: mean loss of the whole model on them; None without ablation.
        rule: how units were selected, in words; empty if they were not.
        notes: what a reader should know.
    """

    model: str
    task: str
    feeds: int
    loss: float | None
    kinds: tuple[KindScores, ...]
    rule: str
    selected: tuple[Selected, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; docs/importance.md describes it."""
        return {"schema": 1, **asdict(self)}

    def criteria(self) -> tuple[str, ...]:
        """All criteria of any kind, in their order."""
        return tuple(dict.fromkeys(c for kind in self.kinds for c in kind.importance))


def correlation(one: Sequence[float | None], other: Sequence[float | None]) -> float | None:
    """Spearman's rank correlation over what both know; ties share their mean rank."""
    from scipy.stats import rankdata

    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    if len(pairs) < FEWEST:
        return None
    a, b = (rankdata(column) for column in zip(*pairs, strict=True))
    if a.std() == 0 or b.std() == 0:
        return None
    return round(float(np.corrcoef(a, b)[0, 1]), 4)
