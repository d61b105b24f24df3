"""Run every feed once and keep only what its scores need."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from exporter.models.examples import Batch, Examples, Outputs
from exporter.models.runner import Run
from exporter.progress import Progress

Scored = TypeVar("Scored")


def score_feeds(
    run: Run,
    examples: Examples[Any],
    reduce: Callable[[Outputs, Batch], list[Scored]],
    *,
    batch_size: int,
    progress: Progress,
    workers: int,
) -> list[Scored]:
    """What `reduce` makes of the outputs of each feed, in the order of the feeds.

    Args:
        reduce: from the outputs of a batch to one small value a feed, so that logits of a whole
            data set never lie in memory.
        workers: batches that run at once, in threads (sessions release the interpreter lock).
    """
    order = list(range(len(examples.feeds)))
    if batch_size > 1:
        # Batches of equal length waste nothing on padding; longest first shows a lack of memory
        # at once instead of at the end.
        order.sort(key=lambda i: -max(a.size for a in examples.feeds[i].values()))
    found: dict[int, Scored] = {}

    def one(batch: Batch) -> tuple[Batch, list[Scored]]:
        return batch, reduce(run(batch.feeds), batch)

    with progress.stage(f"score {examples.role.name} data", len(order)) as bar:

        def keep(result: tuple[Batch, list[Scored]]) -> None:
            batch, values = result
            found.update(zip(batch.index.tolist(), values, strict=True))
            bar.advance(len(values))

        # One window of chunks at a time: `map` over all batches would stack every one up front.
        if workers > 1:
            with ThreadPoolExecutor(workers) as pool:
                window = batch_size * workers * 8
                for start in range(0, len(order), window):
                    for result in pool.map(
                        one, examples.batches(batch_size, order[start : start + window])
                    ):
                        keep(result)
        else:
            for batch in examples.batches(batch_size, order):
                keep(one(batch))
    return [found[i] for i in range(len(order))]
