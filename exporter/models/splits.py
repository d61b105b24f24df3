"""Four disjoint splits of any data, the same ones whatever the order of its rows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from exporter.errors import DataError
from exporter.models.columns import canonical_rows, index_labels, labels_present
from exporter.models.data import read_rows
from exporter.models.examples import Calibration, Development, R, Split, Test, Train
from exporter.models.tasks import Task

# Shares of undivided data, and the fewest examples with which each role makes sense. Twenty
# judged examples can show a collapse; what margin they can prove is up to the statistics.
SHARES = {"test": 0.15, "development": 0.10, "calibration": 0.05}
MINIMUM = {"test": 20, "development": 20, "calibration": 8, "train": 16}
# Why a row is in no split.
_EMPTY, _EQUAL = "empty", "equal to another"
_CONTRARY = "equal to another that has a different label"
# Who keeps an example that is in two splits: the judged ones, so that training never saw it.
_KEEPS_FIRST = ("test", "development", "calibration", "train")

Rows = list[tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class Splits:
    """Typed, disjoint splits.

    Attributes:
        data_hash: SHA-256 over the content of all four, in order.
        left_out: why rows are in no split -> how many.
    """

    train: Split[Train]
    calibration: Split[Calibration]
    development: Split[Development]
    test: Split[Test]
    data_hash: str
    left_out: Mapping[str, int] = field(default_factory=dict, compare=False)

    def left_out_text(self) -> str:
        """How many rows are in no split, and why; "" if all are."""
        count = sum(self.left_out.values())
        if not count:
            return ""
        reasons = ", ".join(f"{number:,} {why}" for why, number in self.left_out.items() if number)
        return f"{count:,} {'row' if count == 1 else 'rows'} left out: {reasons}"

    def recalibrated(self, seed: int) -> Split[Calibration]:
        """As many calibration examples, drawn anew from them and the training examples."""
        pool = [
            pair
            for split in (self.calibration, self.train)
            for pair in zip(split.ids, split.rows, strict=True)
        ]
        pool.sort(key=lambda pair: _salted(pair[0], seed))
        drawn = pool[: len(self.calibration)]
        return Split(Calibration, tuple(r for _, r in drawn), tuple(i for i, _ in drawn))


def make_splits(
    data: str,
    task: Task,
    *,
    columns: Mapping[str, str] | None = None,
    label_names: Mapping[str, int] | None = None,
    seed: int = 0,
    calibration_examples: int = 128,
    slices: Sequence[str] = (),
) -> Splits:
    """Read data and divide it into train, calibration, development and test.

    Splits that the data has are kept; missing ones are carved out of train (or of undivided
    data) by hash of content and seed. Equal examples are kept once, in the test split first.

    Args:
        columns: canonical column -> its name in the data.
        label_names: the model's label2id, None if it names no classes.
        calibration_examples: at most so many are kept for calibration.
        slices: columns whose values group the examples, for judging the worst group.

    Raises:
        DataError: unreadable, a column or label is missing or unknown, one class only, or fewer
            examples than a split needs.
    """
    canonical = canonical_rows(data, read_rows(data), task, columns, slices)
    if "label" in task.columns:
        canonical = index_labels(data, canonical, label_names)
    if len(canonical) == 1:
        canonical = {None: next(iter(canonical.values()))}
    parts, left_out = _distinct(canonical, task, seed)
    if None not in parts and "train" not in parts:
        raise DataError(
            data,
            "must have a train split beside the others",
            got=", ".join(str(name) for name in parts),
            remedy="add one, or give all examples undivided.",
        )
    _carve(data, parts, calibration_examples)
    for name, least in MINIMUM.items():
        if len(parts[name]) < least:
            raise DataError(
                f"{data}: {name}",
                f"must hold at least {least} different examples",
                got=len(parts[name]),
                remedy="add examples (equal ones count once, in the test split first).",
            )
    if "label" in task.columns and labels_present(row for _, row in parts["test"]) < 2:
        raise DataError(
            f"{data}: test",
            "must hold at least two classes",
            got="one",
            remedy="add examples of the others.",
        )
    return Splits(
        _split(Train, parts),
        _split(Calibration, parts),
        _split(Development, parts),
        _split(Test, parts),
        _hash(parts),
        left_out,
    )


def _distinct(
    rows: Mapping[str | None, list[dict[str, Any]]], task: Task, seed: int
) -> tuple[dict[str | None, Rows], dict[str, int]]:
    """Rows with their ids, each id once over all splits, in salted hash order; why others went."""
    seen: dict[str, Any] = {}  # id -> label
    left_out = dict.fromkeys((_EMPTY, _EQUAL, _CONTRARY), 0)
    kept: dict[str | None, Rows] = {}
    for name in (*_KEEPS_FIRST, None):
        if name not in rows:
            continue
        pairs = [(task.row_id(row), row) for row in rows[name]]
        # The label breaks ties, so that equal inputs with two labels do not depend on row order.
        pairs.sort(key=lambda pair: (_salted(pair[0], seed), pair[1].get("label") or 0))
        kept[name] = []
        for identity, row in pairs:
            if identity not in seen:
                seen[identity] = row.get("label")
                kept[name].append((identity, row))
            elif isinstance(row.get("text"), str) and not row["text"].strip():
                left_out[_EMPTY] += 1
            else:
                left_out[_EQUAL if seen[identity] == row.get("label") else _CONTRARY] += 1
    return kept, left_out


def _carve(data: str, parts: dict[str | None, Rows], calibration_examples: int) -> None:
    """Take the missing splits off the front of the pool, leave the rest as train."""
    pool = parts.pop(None) if None in parts else parts.pop("train")
    counts = {
        name: max(MINIMUM[name], round(share * len(pool)))
        for name, share in SHARES.items()
        if name not in parts
    }
    if "calibration" in counts:
        counts["calibration"] = max(
            MINIMUM["calibration"], min(counts["calibration"], calibration_examples)
        )
    needed = sum(MINIMUM[name] for name in counts) + MINIMUM["train"]
    if len(pool) < needed:
        raise DataError(
            data,
            f"must hold at least {needed} different examples to carve "
            f"{', '.join([*counts, 'train'])} out of",
            got=len(pool),
            remedy="add examples (equal ones count once).",
        )
    for name, count in counts.items():
        parts[name], pool = pool[:count], pool[count:]
    parts["train"] = pool
    parts["calibration"] = parts["calibration"][:calibration_examples]


def _split(role: type[R], parts: Mapping[str | None, Rows]) -> Split[R]:
    rows = parts[role.name]
    return Split(role, tuple(row for _, row in rows), tuple(identity for identity, _ in rows))


def _salted(identity: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{identity}".encode()).hexdigest()


def _hash(parts: Mapping[str | None, Rows]) -> str:
    digest = hashlib.sha256()
    for role in (Train, Calibration, Development, Test):
        for identity, row in parts[role.name]:
            digest.update(f"{role.name}\0{identity}\0{row.get('label', '')}\n".encode())
    return digest.hexdigest()
