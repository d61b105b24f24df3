"""Scores: what one model answered to each example, and how well."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.errors import ArtifactError


@dataclass(frozen=True)
class Scores:
    """Per-example scores of one model on one set of examples.

    Attributes:
        task: the task's name.
        ids: content hash of each example, in the order of the values.
        values: named columns, each (n,) float64. By task:
            text-generation       `nll` (nats, summed), `tokens`, `correct` (next tokens)
            text-classification,
            image-classification  `correct` (0 or 1), `prediction`, `label`, `nll`
            feature-extraction    `correct` (recall@1, 0 or 1), `cosine` to the reference
                                  (added by `Task.relate`)
        arrays: large per-example payload that is not evidence by itself, such as
            `embedding` (n, dimensions) float32.
    """

    task: str
    ids: tuple[str, ...]
    values: dict[str, NDArray[np.float64]]
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def summary(self) -> dict[str, float]:
        """The task's headline figures, such as `perplexity` or `accuracy` (0 to 1)."""
        v = self.values
        if "tokens" in v:
            tokens = float(v["tokens"].sum())
            with np.errstate(over="ignore"):
                return {
                    "perplexity": float(np.exp(v["nll"].sum() / tokens)),
                    "next_token_accuracy": float(v["correct"].sum() / tokens),
                }
        name = "recall_at_1" if self.task == "feature-extraction" else "accuracy"
        out = {name: float(v["correct"].mean())}
        if "cosine" in v:
            out["cosine"] = float(v["cosine"].mean())
        return out

    def save(self, directory: Path, name: str = "scores") -> None:
        """Write `NAME.jsonl` (one line an example) and, for payload, `NAME.npz`."""
        columns = sorted(self.values)
        with (directory / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            file.write(json.dumps({"task": self.task, "columns": columns}) + "\n")
            for i, identity in enumerate(self.ids):
                row = [float(self.values[c][i]) for c in columns]
                file.write(json.dumps([identity, *row]) + "\n")
        if self.arrays:
            payload: Mapping[str, Any] = self.arrays
            np.savez(directory / f"{name}.npz", **payload)


def load_scores(directory: Path, name: str = "scores") -> Scores:
    """Read what `Scores.save` wrote.

    Raises:
        ArtifactError: the file is missing or malformed.
    """
    path = directory / f"{name}.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        head = json.loads(lines[0])
        rows = [json.loads(line) for line in lines[1:]]
        columns = np.asarray([row[1:] for row in rows], np.float64)
        columns = columns.reshape(len(rows), len(head["columns"]))
        ids = tuple(str(row[0]) for row in rows)
        values = {c: columns[:, i] for i, c in enumerate(head["columns"])}
        task = str(head["task"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ArtifactError(
            str(path), "must hold per-example scores", got=str(error), remedy="export again."
        ) from error
    payload = directory / f"{name}.npz"
    arrays: dict[str, NDArray[Any]] = {}
    if payload.is_file():
        with np.load(payload) as loaded:
            arrays = dict(loaded)
    return Scores(task, ids, values, arrays)
