"""text-generation: how well a language model predicts the next token of a document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from exporter.errors import DataError
from exporter.models.classify import distillation
from exporter.models.examples import Examples, Feeds, Outputs, R, Split
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
from exporter.models.tokens import Window, score_windows
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
    joint = True

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
            return prepare_feeds(split, config, limit, labelled=False, next_tokens=True)
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
        against: Run | None = None,
        batch_size: int = 1,
        progress: Progress = SILENT,
        workers: int = 1,
    ) -> Scores:
        """`nll` (nats, summed), `tokens` and `correct` (counts) of each document.

        With `against` also `kl` (nats, summed) and `flipped` (count) to that reference, and as
        payload `token_kl` (tokens,) float16 and `surprise` (documents, 5): where the likeliest
        next tokens differ most, the nats, the feed, the position, and both tokens.
        """

        def both(feeds: Feeds) -> Outputs:
            outputs = {"logits": main_output(run(feeds), "logits")}
            if against is not None:
                outputs["reference"] = main_output(against(feeds), "logits")
            return outputs

        windows = score_feeds(
            both, examples, score_windows, batch_size=batch_size, progress=progress, workers=workers
        )
        columns = ("nll", "tokens", "correct", "kl", "flipped")[: 3 if against is None else 5]
        counts = np.asarray([[getattr(w, c) for c in columns] for w in windows], np.float64)
        sums = np.zeros((len(examples), len(columns)))
        np.add.at(sums, list(examples.owner), counts)
        arrays = {}
        if against is not None:
            arrays["token_kl"] = np.concatenate([w.token_kl for w in windows])
            arrays["surprise"] = _surprises(windows, examples)
        values = dict(zip(columns, sums.T, strict=True))
        return Scores(self.name, examples.ids, values, arrays, examples.slices)

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

    def loss_terms(self, feed: Feeds) -> tuple[int, int]:
        """Next tokens that are predicted, and positions; padding left out."""
        tokens = feed["input_ids"]  # (length,)
        kept = np.asarray(feed.get("attention_mask", np.ones_like(tokens)), bool)
        return int((kept[1:] & kept[:-1]).sum()), int(kept.sum())

    def example_feeds(
        self, config: dict[str, Any], preprocessor: Any, *, batch: int, length: int
    ) -> Feeds:
        """Random tokens, (batch, length)."""
        return example_text_feeds(config, preprocessor, batch=batch, length=length, types=False)


def _surprises(windows: Sequence[Window], examples: Examples[Any]) -> NDArray[np.float64]:
    """Where each document diverges most, (documents, 5); a row of −1 where no token differs."""
    found = np.full((len(examples), 5), -1.0)
    for feed, (owner, window) in enumerate(zip(examples.owner, windows, strict=True)):
        if window.surprise is not None and window.surprise[0] > found[owner, 0]:
            nats, *where = window.surprise
            found[owner] = (nats, feed, *where)
    return found


TASK = TextGeneration()
