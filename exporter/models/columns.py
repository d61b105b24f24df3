"""Columns and labels: from the names that data uses to the ones that tasks use."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from exporter.errors import DataError
from exporter.models.data import NamedLabel, Rows
from exporter.models.tasks import Task

_GENERIC = re.compile(r"LABEL_\d+")


# Where a row keeps the groups it belongs to, by the names of the columns that say so.
SLICES = "slices"


def canonical_rows(
    place: str,
    raw: Rows,
    task: Task,
    columns: Mapping[str, str] | None,
    slices: Sequence[str] = (),
) -> dict[str | None, list[dict[str, Any]]]:
    """Rows with the task's own column names, other columns dropped.

    Rows that hold arrays instead of the task's columns already are model inputs: they keep
    their arrays under their names.

    Args:
        slices: columns whose values group the rows; they are kept under SLICES.

    Raises:
        DataError: a column is missing (those present are named), or an override names none.
    """
    overrides = dict(columns or {})
    for name in overrides:
        if name not in task.columns:
            raise DataError(
                f"column {name}",
                f"{task.name} knows only {', '.join(task.columns)}",
                remedy="name one of these.",
            )
    return {
        role: _renamed(
            place if role is None else f"{place}: {role}", rows, task, overrides, tuple(slices)
        )
        for role, rows in raw.items()
    }


def _renamed(
    place: str,
    rows: Sequence[dict[str, Any]],
    task: Task,
    overrides: Mapping[str, str],
    slices: tuple[str, ...],
) -> list[dict[str, Any]]:
    present = list(dict.fromkeys(name for row in rows[:1000] for name in row))
    found: dict[str, str] = {}
    missing: list[str] = []
    for canonical, own in overrides.items():
        if own not in present:
            raise _no_column(f"{place}: --column {canonical}={own}", own, present)
    for canonical, accepted in task.columns.items():
        wanted = (overrides[canonical],) if canonical in overrides else accepted
        match = next((name for name in wanted if name in present), None)
        if match is not None:
            found[canonical] = match
        elif canonical not in task.optional:
            missing.append(canonical)
    for name in slices:
        if name not in present:
            raise _no_column(f"{place}: --slice {name}", name, present)
    arrays = [n for n in present if n not in found.values() and _is_array(rows[0].get(n))]
    content = [c for c in task.columns if c != "label" and c not in task.optional]
    if arrays and all(c in missing for c in content) and not overrides.keys() & set(content):
        missing = [c for c in missing if c not in content]
    else:
        arrays = []
    if missing:
        raise DataError(
            place,
            f"must have a column for {' and '.join(missing)}",
            got=", ".join(present) or "no columns",
            remedy=f"rename one, or name it with --column {missing[0]}=NAME.",
        )
    return [
        {
            **{canonical: row.get(name) for canonical, name in found.items()},
            **{name: _array(place, name, row.get(name)) for name in arrays},
            **({SLICES: {name: _group(row.get(name)) for name in slices}} if slices else {}),
        }
        for row in rows
    ]


def _no_column(place: str, name: str, present: Sequence[str]) -> DataError:
    close = difflib.get_close_matches(name, present, n=1)
    return DataError(
        place,
        f"the data has no column {name}",
        got=", ".join(present) or "no columns",
        remedy=f"did you mean {close[0]}?" if close else "name one of these.",
    )


def _group(value: Any) -> str:
    """A cell as the name of a group; an empty one is a group as well."""
    return str(value).strip() if value is not None else ""


def _is_array(value: Any) -> bool:
    return isinstance(value, list | np.ndarray) or hasattr(value, "__array__")


def _array(place: str, name: str, value: Any) -> np.ndarray[Any, Any]:
    """A model input: float32 or int64, whatever width the data was stored in."""
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise ValueError(f"{array.dtype} values")
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{place}: {name}",
            "must hold arrays of numbers",
            got=str(error),
            remedy="drop the column or make every row's an array.",
        ) from error
    return array.astype({"f": np.float32, "b": np.bool_}.get(array.dtype.kind, np.int64))


def index_labels(
    place: str,
    rows: Mapping[str | None, list[dict[str, Any]]],
    label_names: Mapping[str, int] | None,
) -> dict[str | None, list[dict[str, Any]]]:
    """The same rows with every label as the model's class index.

    Names are matched to the model's (case aside); integers and digits are taken as indices.
    For a model without names, sorted order of the data's names is used, as image folders do.

    Raises:
        DataError: a label is missing, matches no class of the model, or all are the same.
    """
    used = {_key(place, row.get("label")) for part in rows.values() for row in part}
    names = None if label_names is None else dict(label_names)
    numeric = all(isinstance(k, int) or k.strip().isdigit() for k in used if k not in (names or ()))
    if names is None and not numeric:
        texts = sorted(k if isinstance(k, str) else str(int(k)) for k in used)
        names = {name: i for i, name in enumerate(texts)}
    indices = {key: _index(key, names) for key in used}
    unknown = sorted(str(_shown(key)) for key, index in indices.items() if index is None)
    if unknown:
        known = list(names or {})
        generic = known and all(_GENERIC.fullmatch(n) for n in known)
        raise DataError(
            place,
            f"labels must be the model's: {', '.join(known[:8])}{' …' if len(known) > 8 else ''}",
            got=", ".join(unknown[:5]) + (" …" if len(unknown) > 5 else ""),
            remedy="set id2label and label2id in config.json, or give class indices."
            if generic
            else "rename the labels or give the model that was trained on them.",
        )
    if len(set(indices.values())) < 2:
        raise DataError(
            place,
            "must hold at least two classes",
            got=f"only {', '.join(str(_shown(k)) for k in used)}",
            remedy="a test with one class shows nothing; add examples of the others.",
        )
    return {
        role: [{**row, "label": indices[_key(place, row["label"])]} for row in part]
        for role, part in rows.items()
    }


def _key(place: str, label: Any) -> str | int:
    if isinstance(label, np.integer):
        label = int(label)
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if isinstance(label, str) or (isinstance(label, int) and label >= 0):
        return label
    raise DataError(
        place,
        "every example must have a label, a name or a class index",
        got="none" if label is None else repr(label)[:50],
        remedy="remove examples (or the split) without labels.",
    )


def _shown(key: str | int) -> str | int:
    return key.name if isinstance(key, NamedLabel) else key


def _index(key: str | int, names: Mapping[str, int] | None) -> int | None:
    """The class of a label, None if the model has no such class."""
    classes = set((names or {}).values())
    text = key.name if isinstance(key, NamedLabel) else key
    if isinstance(text, str):
        exact = (names or {}).get(text)
        if exact is not None:
            return exact
        alike = {i for n, i in (names or {}).items() if n.casefold() == text.strip().casefold()}
        if len(alike) == 1:
            return alike.pop()
    if isinstance(key, str) and not key.strip().isdigit():
        return None
    return int(key) if not classes or int(key) in classes else None


def labels_present(rows: Iterable[Mapping[str, Any]]) -> int:
    """How many different classes rows hold."""
    return len({row["label"] for row in rows})
