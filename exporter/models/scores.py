"""Scores: what one model answered to each example, and how well."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from exporter.errors import ArtifactError

# What of a candidate's payload ships: the 99.9th percentile of a divergence is a claim about
# single tokens.
EVIDENCE_ARRAYS = ("token_kl",)
MAX_TOKENS = 64 << 20

# What a malformed file raises on its way through JSON, zip, deflate and NumPy; an encrypted member
# raises RuntimeError.
_MALFORMED = (
    ValueError,
    LookupError,
    TypeError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
)


@dataclass(frozen=True)
class Scores:
    """Per-example scores of one model on one set of examples.

    Attributes:
        task: the task's name.
        ids: content hash of each example, in the order of the values.
        values: named columns, each (n,) float64. By task:
            text-generation       `nll` (nats, summed), `tokens`, `correct` (next tokens);
                                  scored against a reference also `kl` (nats, summed) and
                                  `flipped` (likeliest next tokens that differ)
            text-classification,
            image-classification  `correct` (0 or 1), `prediction`, `label`, `nll`;
                                  `kl` to the reference (added by `Task.relate`)
            feature-extraction    `correct` (recall@1, 0 or 1), `cosine` to the reference
                                  (added by `Task.relate`)
        arrays: large payload: `embedding` (n, dimensions) and `log_probabilities` (n, classes)
            are not evidence by themselves; `token_kl` (tokens,) is, see EVIDENCE_ARRAYS.
        slices: named groupings, each with the group of every example: its class ("label"), or a
            column that the user named.
    """

    task: str
    ids: tuple[str, ...]
    values: dict[str, NDArray[np.float64]]
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    slices: dict[str, tuple[str, ...]] = field(default_factory=dict)

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
        columns, slices = sorted(self.values), sorted(self.slices)
        head = {"task": self.task, "columns": columns, "slices": slices}
        with (directory / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            file.write(json.dumps(head) + "\n")
            for i, identity in enumerate(self.ids):
                row = [float(self.values[c][i]) for c in columns]
                groups = [self.slices[s][i] for s in slices]
                file.write(json.dumps([identity, *row, *groups], ensure_ascii=False) + "\n")
        if self.arrays:
            payload: Mapping[str, Any] = self.arrays
            np.savez_compressed(directory / f"{name}.npz", **payload)

    def evidence(self) -> Scores:
        """The scores without the payload that no verdict rests on."""
        kept = {name: a for name, a in self.arrays.items() if name in EVIDENCE_ARRAYS}
        return replace(self, arrays=kept)


def load_scores(
    directory: Path, name: str = "scores", *, only: Collection[str] | None = None
) -> Scores:
    """Read what `Scores.save` wrote.

    Args:
        only: arrays that may be there, one entry a token each: set it for files that others made.
            None: any, of any shape.

    Raises:
        ArtifactError: the file is missing or malformed.
    """
    path = directory / f"{name}.jsonl"
    try:
        if not path.is_file():  # a pipe would never end
            raise ValueError("no such file")
        lines = path.read_text(encoding="utf-8").splitlines()
        head = json.loads(lines[0])
        rows = [json.loads(line) for line in lines[1:]]
        names, groupings = list(head["columns"]), list(head["slices"])
        end = 1 + len(names)
        if any(len(row) != end + len(groupings) for row in rows):
            raise ValueError("rows of different lengths")
        columns = np.asarray([row[1:end] for row in rows], np.float64)
        columns = columns.reshape(len(rows), len(names))
        ids = tuple(str(row[0]) for row in rows)
        values = {c: columns[:, i] for i, c in enumerate(names)}
        slices = {s: tuple(str(row[end + i]) for row in rows) for i, s in enumerate(groupings)}
        task = str(head["task"])
    except (OSError, *_MALFORMED) as error:
        raise ArtifactError(
            str(path), "must hold per-example scores", got=str(error), remedy="export again."
        ) from error
    payload = directory / f"{name}.npz"
    arrays: dict[str, NDArray[Any]] = {}
    if payload.is_file():
        try:
            if only is None:
                with np.load(payload, allow_pickle=False) as loaded:
                    arrays = dict(loaded)
            else:
                arrays = _token_arrays(payload, only, values.get("tokens"))
        except (OSError, *_MALFORMED) as error:
            raise ArtifactError(
                str(payload), "must hold arrays", got=str(error), remedy="export again."
            ) from error
    return Scores(task, ids, values, arrays, slices)


def _token_arrays(
    payload: Path, only: Collection[str], tokens: NDArray[np.float64] | None
) -> dict[str, NDArray[Any]]:
    """Arrays of one number a token; nothing is unpacked before its header was believed.

    Args:
        tokens: of each example, (n,); None where the scores count none.

    Raises:
        ValueError, RuntimeError, zlib.error, ...: the file is malformed.
    """
    arrays: dict[str, NDArray[Any]] = {}
    with zipfile.ZipFile(payload) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name not in only:
                raise ArtifactError(
                    str(payload), "is no evidence", got=name, remedy="do not trust the artifact."
                )
            if name in arrays:
                raise ValueError(f"{name} stands twice")
            if tokens is None or not ((tokens >= 0) & (tokens == np.floor(tokens))).all():
                raise ValueError(f"{name} without a count of tokens")
            with archive.open(member) as file:
                shape, dtype = _header(file)
            if dtype.kind != "f" or shape != (total := float(tokens.sum()),):
                raise ValueError(f"{name} is {dtype} of shape {shape}, not a number a token")
            if total > MAX_TOKENS:
                raise ValueError(f"{name} is of more than {MAX_TOKENS:,} tokens")
            with archive.open(member) as file:
                arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
    return arrays


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an .npy file, of which only the header is read."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"format {version}")
    read = np.lib.format.read_array_header_1_0
    if version == (2, 0):
        read = np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype
