"""Splits and prepared examples, typed by what they may be used for.

A function that makes choices asks for `Examples[Development]` (or Train, Calibration) and
calls `require` on it; the test split is another type, refused by the type checker before
the run and by `require` during it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from exporter.errors import DataError

Feeds = dict[str, NDArray[Any]]
Outputs = dict[str, NDArray[Any]]


class Role:
    """What a split may be used for."""

    name = ""


class Train(Role):
    """Fine-tuning and importance."""

    name = "train"


class Calibration(Role):
    """Ranges of static quantization."""

    name = "calibration"


class Development(Role):
    """Every choice."""

    name = "development"


class Test(Role):
    """Only the final judgement."""

    name = "test"
    __test__ = False  # not a test case of pytest


ROLES: tuple[type[Role], ...] = (Train, Calibration, Development, Test)

R = TypeVar("R", bound=Role)


@dataclass(frozen=True)
class Split(Generic[R]):
    """Raw rows of one role.

    Attributes:
        role: the role's class.
        rows: one mapping an example, columns by their canonical names (`text`, `label` ...).
        ids: content hash of each row; equal rows have equal ids and never cross splits.
    """

    role: type[R]
    rows: Sequence[Mapping[str, Any]]
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Examples(Generic[R]):
    """Rows made into feeds, ready for a module or an ONNX session.

    Attributes:
        role: the role's class.
        ids: one content hash an example (not a feed: a long document is several feeds).
        feeds: unpadded inputs of each feed, without the batch axis.
        owner: for each feed, the index of its example in `ids`.
        labels: the class of each example, or None.
        pad: value that fills each input up to the longest of a batch; an input that is
            not named here never varies in shape.
        meta: small task-specific facts (such as names of classes), JSON-ready.
        slices: named groupings, each with the group of every example; see `Scores`.
    """

    role: type[R]
    ids: tuple[str, ...]
    feeds: tuple[Feeds, ...]
    owner: tuple[int, ...]
    labels: NDArray[np.int64] | None
    pad: dict[str, int]
    meta: dict[str, Any] = field(default_factory=dict)
    slices: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def require(self, *roles: type[Role]) -> None:
        """Refuse examples of another role, such as test examples handed to a choice.

        Raises:
            DataError: the role is none of `roles`.
        """
        if self.role not in roles:
            raise DataError(
                f"the {self.role.name} split",
                f"may not be used where {' or '.join(r.name for r in roles)} is asked for",
                remedy="pass the split that this step is allowed to see.",
            )

    def head(self, count: int) -> Examples[R]:
        """The first `count` examples with all their feeds."""
        kept = [i for i, owner in enumerate(self.owner) if owner < count]
        return Examples(
            self.role,
            self.ids[:count],
            tuple(self.feeds[i] for i in kept),
            tuple(self.owner[i] for i in kept),
            None if self.labels is None else self.labels[:count],
            self.pad,
            self.meta,
            {name: groups[:count] for name, groups in self.slices.items()},
        )

    def batches(self, size: int, order: Sequence[int] | None = None) -> Iterator[Batch]:
        """Padded batches of at most `size` feeds, in `order` (default: as they lie)."""
        order = range(len(self.feeds)) if order is None else order
        for start in range(0, len(order), size):
            chosen = list(order[start : start + size])
            yield Batch(
                stack([self.feeds[i] for i in chosen], self.pad),
                np.asarray(chosen, np.int64),
                None
                if self.labels is None
                else self.labels[np.asarray([self.owner[i] for i in chosen], np.int64)],
            )

    def save(self, directory: Path) -> None:
        """Write the examples to `directory` (`examples.npz` and `examples.json`)."""
        arrays: dict[str, NDArray[Any]] = {"owner": np.asarray(self.owner, np.int64)}
        if self.labels is not None:
            arrays["labels"] = self.labels
        names = sorted(self.feeds[0]) if self.feeds else []
        shapes: dict[str, list[list[int]]] = {}
        for name in names:
            parts = [f[name] for f in self.feeds]
            shapes[name] = [list(p.shape) for p in parts]
            arrays[f"feed.{name}"] = np.concatenate([p.reshape(-1) for p in parts])
        np.savez(directory / "examples.npz", **arrays)  # type: ignore[arg-type]
        facts = {
            "role": self.role.name,
            "ids": self.ids,
            "pad": self.pad,
            "meta": self.meta,
            "shapes": shapes,
            "slices": self.slices,
        }
        (directory / "examples.json").write_text(json.dumps(facts), encoding="utf-8")


@dataclass(frozen=True)
class Batch:
    """Feeds with a batch axis in front, the feeds' indices, and their labels."""

    feeds: Feeds
    index: NDArray[np.int64]
    labels: NDArray[np.int64] | None


def stack(feeds: Sequence[Feeds], pad: Mapping[str, int]) -> Feeds:
    """Feeds on top of each other, each input padded at its end to the longest of them."""
    stacked: Feeds = {}
    for name in feeds[0]:
        parts = [f[name] for f in feeds]
        if name in pad:
            shape = tuple(max(sizes) for sizes in zip(*(p.shape for p in parts), strict=True))
            out = np.full((len(parts), *shape), pad[name], parts[0].dtype)
            for row, part in zip(out, parts, strict=True):
                row[tuple(slice(0, size) for size in part.shape)] = part
            stacked[name] = out
        else:
            stacked[name] = np.stack(parts)
    return stacked


def load_examples(directory: Path, role: type[R]) -> Examples[R]:
    """Read what `Examples.save` wrote, as examples of `role`.

    Raises:
        DataError: they were saved as another role, or by another version.
    """
    try:
        return _loaded(directory, role)
    except KeyError as error:
        raise DataError(
            str(directory),
            f"was prepared by another version: it has no {error}",
            remedy="export again.",
        ) from error


def _loaded(directory: Path, role: type[R]) -> Examples[R]:
    """See `load_examples`; a fact that is not there is a KeyError."""
    facts = json.loads((directory / "examples.json").read_text(encoding="utf-8"))
    if facts["role"] != role.name:
        raise DataError(
            str(directory), f"must hold the {role.name} split", got=facts["role"], remedy="rerun."
        )
    with np.load(directory / "examples.npz") as arrays:
        owner = tuple(int(i) for i in arrays["owner"])
        labels = arrays.get("labels")
        feeds: list[Feeds] = [{} for _ in owner]
        for name, shapes in facts["shapes"].items():
            flat, at = arrays[f"feed.{name}"], 0
            for feed, shape in zip(feeds, shapes, strict=True):
                size = int(np.prod(shape, dtype=np.int64))
                feed[name] = flat[at : at + size].reshape(shape)
                at += size
    return Examples(
        role,
        tuple(facts["ids"]),
        tuple(feeds),
        owner,
        labels,
        facts["pad"],
        facts["meta"],
        {name: tuple(groups) for name, groups in facts["slices"].items()},
    )
