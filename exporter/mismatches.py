"""Mismatches: where two JSON values differ, claimed and derived, one leaf at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exporter.report.wording import plain

# Figures may differ by rounding between machines.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Mismatch:
    """One thing that is not as claimed.

    Attributes:
        place: file in the artifact, and where in it.
        rule: what must hold.
        claimed, derived: the two values, where there are two.
    """

    place: str
    rule: str
    claimed: Any = None
    derived: Any = None

    def __str__(self) -> str:
        values = "" if self.claimed is None and self.derived is None else self._values()
        return f"{self.place}: {self.rule}{values}"

    def _values(self) -> str:
        return f": claimed {_shown(self.claimed)}, derived {_shown(self.derived)}"

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "place": plain(self.place),
            "rule": plain(self.rule),
            "claimed": _printable(self.claimed),
            "derived": _printable(self.derived),
        }


def differences(place: str, claimed: Any, derived: Any) -> list[Mismatch]:
    """Each leaf of two JSON values that is not the same in both."""
    if isinstance(claimed, Mapping) and isinstance(derived, Mapping):
        names = [*derived, *(name for name in claimed if name not in derived)]
        return [
            found
            for name in names
            for found in differences(f"{place}.{name}", claimed.get(name), derived.get(name))
        ]
    if isinstance(claimed, list) and isinstance(derived, list) and len(claimed) == len(derived):
        return [
            found
            for i, (one, other) in enumerate(zip(claimed, derived, strict=True))
            for found in differences(f"{place}[{i}]", one, other)
        ]
    if _same(claimed, derived):
        return []
    return [Mismatch(place, "does not follow from the evidence", claimed, derived)]


def _same(claimed: Any, derived: Any) -> bool:
    numbers = (int, float)
    if isinstance(claimed, bool) or isinstance(derived, bool):
        return claimed is derived
    if isinstance(claimed, numbers) and isinstance(derived, numbers):
        try:
            return math.isclose(claimed, derived, rel_tol=ROUNDING, abs_tol=ROUNDING)
        except OverflowError:  # an integer beyond any float
            return claimed == derived
    return type(claimed) is type(derived) and bool(claimed == derived)


def _printable(value: Any) -> Any:
    """A value that any JSON reader and any terminal takes."""
    if isinstance(value, Sequence | Mapping) and not isinstance(value, str):
        return _shown(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return plain(value) if isinstance(value, str) else value


def _shown(value: Any) -> str:
    if isinstance(value, Sequence | Mapping) and not isinstance(value, str):
        return f"{type(value).__name__} of {len(value)}"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 160 else f"{text[:157]}..."
