"""Batching: feeds of similar length together, in an order that seed and epoch decide."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np

from exporter.models.examples import Batch, Development, Examples, Train

DEVELOPMENT_BATCHES = 16
POOL = 50  # batches that are sorted by length together


def training_order(examples: Examples[Train], size: int, seed: int) -> Iterator[list[int]]:
    """Endless batches of feed indices: shuffled, but of similar lengths."""
    lengths = np.asarray(_lengths(examples))
    for epoch in count():
        generator = np.random.default_rng((seed, epoch))
        order = generator.permutation(len(lengths))
        if len(order) > size:  # a short rest would weigh more; it comes again in another epoch
            order = order[: len(order) // size * size]
        groups: list[list[int]] = []
        for start in range(0, len(order), size * POOL):
            pool = order[start : start + size * POOL]
            pool = pool[np.argsort(lengths[pool], kind="stable")]
            groups += [list(map(int, pool[i : i + size])) for i in range(0, len(pool), size)]
        for index in generator.permutation(len(groups)):
            yield groups[index]


def development_batches(examples: Examples[Development], size: int) -> list[Batch]:
    """A capped, evenly spread and length-sorted share of the development feeds."""
    lengths = _lengths(examples)
    chosen = spread(len(lengths), size * DEVELOPMENT_BATCHES)
    return list(examples.batches(size, sorted(chosen, key=lambda i: (lengths[i], i))))


def spread(total: int, limit: int) -> list[int]:
    """At most `limit` indices below `total`, evenly apart."""
    number = min(total, limit)
    return [i * total // number for i in range(number)]


def few_feeds(examples: Examples[Train], count: int) -> Examples[Train]:
    """At most `count` feeds, evenly from all examples: long documents would cost minutes."""
    if len(examples.feeds) <= count:
        return examples
    chosen = spread(len(examples.feeds), count)
    return Examples(
        examples.role,
        examples.ids,
        tuple(examples.feeds[i] for i in chosen),
        tuple(examples.owner[i] for i in chosen),
        examples.labels,
        examples.pad,
        examples.meta,
    )


def _lengths(examples: Examples[Any]) -> list[int]:
    """The length of each feed that decides how much padding a batch needs."""
    return [
        max((a.shape[0] for a in feed.values() if a.ndim), default=0) for feed in examples.feeds
    ]
