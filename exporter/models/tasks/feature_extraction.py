"""feature-extraction: embeddings, judged by retrieval and by closeness to the reference's.

Each example is a query and the document that answers it; the embedding of a text is the
mean of `last_hidden_state` over its tokens (sentence-transformers' default pooling), or the
model's own two-dimensional output when it pools by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from exporter.errors import DataError
from exporter.models.examples import Batch, Examples, Feeds, Outputs, R, Split
from exporter.models.runner import Run, main_output, named_outputs
from exporter.models.scores import Scores
from exporter.models.scoring import score_feeds
from exporter.models.tasks import SILENT
from exporter.models.text import (
    are_feeds,
    content_id,
    encode,
    example_text_feeds,
    feeds_id,
    feeds_of,
    padding,
    prepare_feeds,
    require_text,
)
from exporter.progress import Progress

if TYPE_CHECKING:
    import torch

MINIMUM_WORDS = 8  # a shorter text cannot be split into a query and a document
_OUTPUTS = ("sentence_embedding", "embedding", "embeddings", "last_hidden_state")


class FeatureExtraction:
    """Recall@1 of a query's own document among all documents, and cosine to the reference."""

    name = "feature-extraction"
    columns: ClassVar[dict[str, tuple[str, ...]]] = {
        "text": ("text", "query", "anchor", "sentence", "sentence1", "question", "content"),
        "positive": ("positive", "document", "passage", "answer", "sentence2", "pos"),
    }
    optional = frozenset({"positive"})
    metrics = ("accuracy_drop_points", "embedding_cosine")
    joint = False

    def row_id(self, row: Mapping[str, Any]) -> str:
        """Content hash of the text and its positive."""
        if feeds_of(row):
            return feeds_id(row)
        return content_id(row["text"], row.get("positive"))

    def prepare(
        self,
        split: Split[R],
        preprocessor: Any,
        config: dict[str, Any],
        *,
        max_length: int,
        limit: int | None = None,
    ) -> Examples[R]:
        """Two feeds a row: the query, then the document that answers it.

        Rows without a `positive` are cut in two halves by words; those of fewer than 8 words
        cannot be and are left out. Rows that already are feeds hold one embedding each.

        Raises:
            DataError: no row is long enough.
        """
        if preprocessor is None or are_feeds(split):
            return prepare_feeds(split, config, limit, labelled=False)
        paired = any(row.get("positive") is not None for row in split.rows)
        require_text(split.rows, ("text", "positive") if paired else ("text",), split.role.name)
        ids: list[str] = []
        texts: list[str] = []
        for row, identity in zip(split.rows, split.ids, strict=True):
            if limit is not None and len(ids) == limit:
                break
            halves = (row["text"], row["positive"]) if paired else _halves(row["text"])
            if halves is not None:
                ids.append(identity)
                texts.extend(halves)
        if not ids:
            raise DataError(
                f"the {split.role.name} split",
                f"must hold texts of at least {MINIMUM_WORDS} words, or a positive column",
                remedy="give longer texts or pairs.",
            )
        feeds = encode(preprocessor, texts, None, config, max_length)
        owner = tuple(i // 2 for i in range(len(feeds)))
        return Examples(split.role, tuple(ids), feeds, owner, None, padding(preprocessor))

    def score(
        self,
        run: Run,
        examples: Examples[Any],
        *,
        against: Run | None = None,
        batch_size: int = 1,
        progress: Progress = SILENT,
        workers: int = 1,
    ) -> Scores:
        """`correct` (recall@1) of each pair, and its `embedding` for `relate`.

        `embedding` (n, 2 · dimensions) is the unit query beside the unit document. Examples of
        one feed have no document to find: there `neighbour` (n,) is each one's nearest other,
        and `relate` counts as correct those whose neighbour is the reference's.
        """
        pooled: list[NDArray[np.float64]] = score_feeds(
            run, examples, _pooled, batch_size=batch_size, progress=progress, workers=workers
        )
        vectors = np.stack(pooled).astype(np.float32)  # (feeds, dimensions)
        with np.errstate(invalid="ignore", divide="ignore"):
            unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        if len(unit) == 2 * len(examples):
            query, document = unit[0::2], unit[1::2]
            correct = _recall(query, document, _groups(examples.feeds[1::2]))
            arrays = {"embedding": np.concatenate([query, document], axis=1)}
        else:
            correct = np.isfinite(unit).all(1).astype(np.float64)
            arrays = {"embedding": unit, "neighbour": _neighbours(unit)}
        return Scores(self.name, examples.ids, {"correct": correct}, arrays, examples.slices)

    def relate(self, reference: Scores, candidate: Scores) -> Scores:
        """The candidate's scores with `cosine`, mean over a pair's two texts."""
        ours, theirs = candidate.arrays["embedding"], reference.arrays["embedding"]
        if ours.shape != theirs.shape or candidate.ids != reference.ids:
            raise DataError(
                "evidence",
                "embeddings of both models must have the same shape and examples",
                got=f"{ours.shape} and {theirs.shape}",
                remedy="score both models on the same examples.",
            )
        dot = (ours.astype(np.float64) * theirs).sum(1)
        norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            cosine = np.clip(dot / norms, -1, 1)
        values = {**candidate.values, "cosine": cosine}
        if "neighbour" in candidate.arrays:
            same = candidate.arrays["neighbour"] == reference.arrays["neighbour"]
            values["correct"] = candidate.values["correct"] * same
        return replace(candidate, values=values)

    def task_loss(
        self, outputs: Any, feeds: Mapping[str, torch.Tensor], labels: torch.Tensor | None
    ) -> torch.Tensor | None:
        """None: embeddings have no labels, recovery is by distillation alone."""
        return None

    def distill_loss(
        self,
        student_outputs: Any,
        teacher_outputs: Any,
        feeds: Mapping[str, torch.Tensor],
        temperature: float,
    ) -> torch.Tensor:
        """One minus the mean cosine between pooled embeddings of student and teacher."""
        import torch

        student = _pooled_tensor(student_outputs, feeds)
        teacher = _pooled_tensor(teacher_outputs, feeds).detach()
        return 1 - torch.nn.functional.cosine_similarity(student, teacher).mean()

    def loss_terms(self, feed: Feeds) -> tuple[int, int]:
        """No task's loss; one embedding a feed."""
        return 0, 1

    def example_feeds(
        self, config: dict[str, Any], preprocessor: Any, *, batch: int, length: int
    ) -> Feeds:
        """Random tokens, (batch, length)."""
        return example_text_feeds(config, preprocessor, batch=batch, length=length, types=True)


def _halves(text: str) -> tuple[str, str] | None:
    words = text.split()
    middle = len(words) // 2
    if len(words) < MINIMUM_WORDS:
        return None
    return " ".join(words[:middle]), " ".join(words[middle:])


def _pooled(outputs: Outputs, batch: Batch) -> list[NDArray[np.float64]]:
    """One vector a feed: the mean over unpadded tokens, or the output as it is."""
    hidden = np.asarray(main_output(outputs, *_OUTPUTS), np.float64)
    if hidden.ndim == 2:
        return list(hidden)
    mask = batch.feeds.get("attention_mask")
    mask = np.ones(hidden.shape[:2]) if mask is None else mask
    kept = mask.astype(bool)  # selected, not multiplied: 0 · NaN of padding would spread
    return [row[use].mean(0) for row, use in zip(hidden, kept, strict=True)]


def _pooled_tensor(outputs: Any, feeds: Mapping[str, torch.Tensor]) -> torch.Tensor:
    hidden: torch.Tensor = main_output(named_outputs(outputs), *_OUTPUTS).float()
    if hidden.ndim == 2:
        return hidden
    if "attention_mask" not in feeds:
        return hidden.mean(1)
    mask = feeds["attention_mask"].unsqueeze(-1).to(hidden.dtype)  # (batch, length, 1)
    return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)


def _groups(documents: Sequence[Feeds]) -> NDArray[np.int64]:
    """The same number for documents with the same content, (n,)."""
    seen: dict[str, int] = {}
    return np.asarray([seen.setdefault(feeds_id(d), len(seen)) for d in documents], np.int64)


def _recall(
    query: NDArray[np.float32], document: NDArray[np.float32], group: NDArray[np.int64]
) -> NDArray[np.float64]:
    """1 where a query is strictly closer to its document than to every different one, (n,).

    Strictly, so that a model that answers the same to everything recalls nothing.
    """
    correct = np.zeros(len(query))
    for start, stop in _blocks(len(query)):
        similarity = query[start:stop] @ document.T  # (block, documents)
        own = similarity[np.arange(stop - start), np.arange(start, stop)].copy()
        similarity[group[start:stop, None] == group[None, :]] = -np.inf
        correct[start:stop] = own > similarity.max(1)
    return correct


def _neighbours(unit: NDArray[np.float32]) -> NDArray[np.int64]:
    """The nearest other row of each row, (n,)."""
    nearest = np.zeros(len(unit), np.int64)
    for start, stop in _blocks(len(unit)):
        similarity = unit[start:stop] @ unit.T  # (block, n)
        similarity[np.arange(stop - start), np.arange(start, stop)] = -np.inf
        nearest[start:stop] = similarity.argmax(1)
    return nearest


def _blocks(count: int) -> list[tuple[int, int]]:
    """Ranges of rows whose similarities to all others fit into memory."""
    return [(start, min(start + 1024, count)) for start in range(0, count, 1024)]


TASK = FeatureExtraction()
