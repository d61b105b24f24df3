"""text-generation: how well a language model predicts the next token of a document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from exporter.errors import DataError
from exporter.models.classify import distillation
from exporter.models.examples import Batch, Examples, Feeds, Outputs, R, Split
from exporter.models.runner import Run, main_output, named_outputs
from exporter.models.scores import Scores
from exporter.models.scoring import score_feeds
from exporter.models.tasks import SILENT
from exporter.models.text import (
    are_feeds,
    content_id,
    example_text_feeds,
    feeds_id,
    feeds_of,
    model_length,
    padding,
    prepare_feeds,
    require_text,
)
from exporter.progress import Progress

if TYPE_CHECKING:
    import torch


class TextGeneration:
    """Perplexity and next-token accuracy over documents."""

    name = "text-generation"
    columns: ClassVar[dict[str, tuple[str, ...]]] = {
        "text": ("text", "content", "code", "document", "body", "sentence")
    }
    optional: frozenset[str] = frozenset()
    metrics = ("perplexity_ratio",)

    def row_id(self, row: Mapping[str, Any]) -> str:
        """Content hash of the document."""
        return feeds_id(row) if feeds_of(row) else content_id(row["text"])

    def prepare(
        self,
        split: Split[R],
        preprocessor: Any,
        config: dict[str, Any],
        *,
        max_length: int,
        limit: int | None = None,
    ) -> Examples[R]:
        """One example a document, one feed a window of its tokens.

        Windows overlap by one token, so that each next token is predicted exactly once. The
        first starts with the beginning-of-text token if the tokenizer has one. Documents in
        which nothing can be predicted are left out.

        Raises:
            DataError: no document has two tokens.
        """
        if preprocessor is None or are_feeds(split):
            return prepare_feeds(split, config, limit, labelled=False)
        require_text(split.rows, ("text",), split.role.name)
        length = model_length(preprocessor, config, max_length)
        start = preprocessor.bos_token_id
        ids: list[str] = []
        feeds: list[Feeds] = []
        owner: list[int] = []
        for row, identity in zip(split.rows, split.ids, strict=True):
            if limit is not None and len(ids) == limit:
                break
            tokens = preprocessor(row["text"], add_special_tokens=False, verbose=False)["input_ids"]
            if start is not None and tokens:
                tokens = [start, *tokens]
            if len(tokens) < 2:
                continue
            for first in range(0, len(tokens) - 1, length - 1):
                window = np.asarray(tokens[first : first + length], np.int64)
                feeds.append({"input_ids": window, "attention_mask": np.ones_like(window)})
                owner.append(len(ids))
            ids.append(identity)
        if not ids:
            raise DataError(
                f"the {split.role.name} split",
                "must hold a document of at least two tokens",
                remedy="give longer documents.",
            )
        return Examples(
            split.role, tuple(ids), tuple(feeds), tuple(owner), None, padding(preprocessor)
        )

    def score(
        self,
        run: Run,
        examples: Examples[Any],
        *,
        batch_size: int = 1,
        progress: Progress = SILENT,
        workers: int = 1,
    ) -> Scores:
        """`nll` (nats, summed), `tokens` and `correct` (counts) of each document."""
        counts = score_feeds(
            run, examples, _next_tokens, batch_size=batch_size, progress=progress, workers=workers
        )
        sums = np.zeros((len(examples), 3))  # (documents, [nll, tokens, correct])
        np.add.at(sums, list(examples.owner), np.asarray(counts, np.float64).reshape(-1, 3))
        nll, tokens, correct = sums.T
        return Scores(self.name, examples.ids, {"nll": nll, "tokens": tokens, "correct": correct})

    def relate(self, reference: Scores, candidate: Scores) -> Scores:
        """The candidate's scores as they are."""
        return candidate

    def task_loss(
        self, outputs: Any, feeds: Mapping[str, torch.Tensor], labels: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Mean cross-entropy of next tokens; padding left out."""
        import torch

        logits = main_output(named_outputs(outputs), "logits")
        targets = feeds["input_ids"][:, 1:]  # (batch, length - 1)
        kept = torch.ones_like(targets, dtype=torch.bool)
        if "attention_mask" in feeds:
            kept = (feeds["attention_mask"][:, 1:] * feeds["attention_mask"][:, :-1]).bool()
        # Only kept positions are widened to float32: logits are the largest tensor there is.
        chosen = logits[:, :-1][kept].float()  # (tokens, vocabulary)
        return torch.nn.functional.cross_entropy(chosen, targets[kept])

    def distill_loss(
        self,
        student_outputs: Any,
        teacher_outputs: Any,
        feeds: Mapping[str, torch.Tensor],
        temperature: float,
    ) -> torch.Tensor:
        """Mean KL from teacher to student over the vocabulary at each unpadded position."""
        student = main_output(named_outputs(student_outputs), "logits")
        teacher = main_output(named_outputs(teacher_outputs), "logits")
        if "attention_mask" in feeds:
            kept = feeds["attention_mask"].bool()
            student, teacher = student[kept], teacher[kept]  # (tokens, vocabulary)
        else:
            student, teacher = student.flatten(0, 1), teacher.flatten(0, 1)
        return distillation(student, teacher, temperature)

    def example_feeds(
        self, config: dict[str, Any], preprocessor: Any, *, batch: int, length: int
    ) -> Feeds:
        """Random tokens, (batch, length)."""
        return example_text_feeds(config, preprocessor, batch=batch, length=length, types=False)


def _next_tokens(outputs: Outputs, batch: Batch) -> list[tuple[float, float, float]]:
    """nll, tokens and correct of each window; windows one after the other to save memory."""
    logits = main_output(outputs, "logits")  # (batch, length, vocabulary)
    ids = batch.feeds["input_ids"]
    mask = batch.feeds.get("attention_mask")
    mask = np.ones_like(ids) if mask is None else mask
    found = []
    for row, tokens, kept in zip(logits, ids, mask.astype(bool), strict=True):
        use = kept[1:] & kept[:-1]
        scores = row[:-1][use].astype(np.float32, copy=False)  # (tokens, vocabulary)
        targets = tokens[1:][use]
        hit = scores[np.arange(len(targets)), targets]
        correct = (scores.argmax(1) == targets) & ~np.isnan(hit)
        with np.errstate(invalid="ignore", over="ignore"):
            top = scores.max(1, keepdims=True)
            total = top[:, 0].astype(np.float64) + np.log(
                np.exp(scores - top).sum(1, dtype=np.float64)
            )
            nll = total - hit
        # argmax stops at a NaN; a row that holds one predicts nothing.
        correct &= ~np.isnan(nll)
        found.append((float(nll.sum()), float(len(targets)), float(correct.sum())))
    return found


TASK = TextGeneration()
