"""Who goes on which side: near-duplicates found by MinHash, then whole groups dealt by hash."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BANDS, _ROWS = 20, 3  # a pair of similarity 0.5 shares a band with probability 0.93
_WORD = re.compile(r"\w+")


def near_duplicates(
    texts: Sequence[str], *, words: int, similarity: float = 0.5
) -> NDArray[np.int64]:
    """For each text the index of the first text of its group of near-duplicates.

    Texts are alike when the Jaccard similarity of their sets of runs of `words` words,
    estimated by MinHash (Broder, 1997) with banding, reaches `similarity`; groups are what
    likeness connects.
    """
    signatures = np.stack([_signature(text, words) for text in texts])  # (texts, bands * rows)
    group = list(range(len(texts)))

    def first(i: int) -> int:
        while group[i] != i:
            group[i] = group[group[i]]
            i = group[i]
        return i

    for band in range(_BANDS):
        rows = np.ascontiguousarray(signatures[:, band * _ROWS : (band + 1) * _ROWS])
        buckets: dict[bytes, int] = {}
        for i, key in enumerate(rows):
            other = buckets.setdefault(key.tobytes(), i)
            if other != i and (signatures[i] == signatures[other]).mean() >= similarity:
                a, b = sorted((first(i), first(other)))
                group[b] = a
    return np.asarray([first(i) for i in range(len(texts))], np.int64)


def deal(keys: Sequence[str], groups: Iterable[int], counts: Mapping[str, int]) -> list[str]:
    """The split of each item: whole groups, in the order of their first key's hash.

    Args:
        keys: one stable name an item; decides the order, so that it does not depend on it.
        groups: for each item the index of the first item of its group.
        counts: how many items each split gets at least, filled one after the other;
            what is left becomes `train`.
    """
    members = defaultdict(list)
    for i, group in enumerate(groups):
        members[int(group)].append(i)
    waiting = deque(sorted(members, key=lambda g: hashlib.sha256(keys[g].encode()).digest()))
    split = ["train"] * len(keys)
    for name, count in counts.items():
        taken = 0
        while taken < count and waiting:
            together = members[waiting.popleft()]
            for i in together:
                split[i] = name
            taken += len(together)
    return split


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


@cache
def _word_hash(word: str) -> int:
    return zlib.crc32(word.encode("utf-8", "surrogatepass"))


@cache
def _mixers() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 2**63, (2, _BANDS * _ROWS), dtype=np.uint64)
    return numbers[0] * 2 + 1, numbers[1]


def _signature(text: str, words: int) -> NDArray[np.uint32]:
    hashes = np.asarray([_word_hash(w) for w in _WORD.findall(text)], np.uint64)
    hashes = np.pad(hashes, (0, max(0, words - len(hashes))))
    runs = np.zeros(len(hashes) - words + 1, np.uint64)
    for i in range(words):
        runs = runs * np.uint64(0x9E3779B97F4A7C15) + hashes[i : i + len(runs)]
    odd, offset = _mixers()
    mixed = np.unique(runs)[:, None] * odd + offset  # (runs, bands * rows), wraps on purpose
    lowest: NDArray[np.uint64] = np.min(mixed >> np.uint64(32), axis=0)
    return lowest.astype(np.uint32)
