"""Slices: which group each example belongs to, by its class or by a column the user named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from exporter.models.columns import SLICES
from exporter.models.examples import Examples, R, Split

BY_CLASS = "label"


def sliced(examples: Examples[R], split: Split[R]) -> Examples[R]:
    """The examples with the group of each: its class, and its row's value of each named column."""
    by_id: dict[str, Any] = dict(zip(split.ids, split.rows, strict=True))
    names = by_id[examples.ids[0]].get(SLICES, {})
    groups = {name: tuple(by_id[i][SLICES][name] for i in examples.ids) for name in names}
    if examples.labels is not None:
        classes = examples.meta.get("labels") or []
        groups[BY_CLASS] = tuple(
            str(classes[label]) if label < len(classes) else str(label)
            for label in examples.labels.tolist()
        )
    return replace(examples, slices=groups)
