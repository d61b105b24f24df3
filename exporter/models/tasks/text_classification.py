"""text-classification: which class a text, or a pair of texts, belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from exporter.models.classify import Classifier
from exporter.models.examples import Examples, Feeds, R, Split
from exporter.models.text import (
    are_feeds,
    content_id,
    encode,
    example_text_feeds,
    feeds_id,
    feeds_of,
    label_names,
    labels_of,
    padding,
    prepare_feeds,
    require_text,
)


class TextClassification(Classifier):
    """Accuracy over labelled texts."""

    name = "text-classification"
    columns: ClassVar[dict[str, tuple[str, ...]]] = {
        "text": (
            "text",
            "sentence",
            "sentence1",
            "premise",
            "question",
            "content",
            "review",
            "docstring",
        ),
        "text_pair": ("text_pair", "sentence2", "hypothesis", "question2", "pair"),
        "label": ("label", "labels", "class", "category", "target", "intent"),
    }
    optional = frozenset({"text_pair"})

    def row_id(self, row: Mapping[str, Any]) -> str:
        """Content hash of the text and its pair."""
        if feeds_of(row):
            return feeds_id(row)
        return content_id(row["text"], row.get("text_pair"))

    def prepare(
        self,
        split: Split[R],
        preprocessor: Any,
        config: dict[str, Any],
        *,
        max_length: int,
        limit: int | None = None,
    ) -> Examples[R]:
        """One feed a row: the tokens of the text (and pair), truncated."""
        if preprocessor is None or are_feeds(split):
            return prepare_feeds(split, config, limit, labelled=True)
        rows = split.rows[:limit]
        paired = any(row.get("text_pair") is not None for row in rows)
        require_text(rows, ("text", "text_pair") if paired else ("text",), split.role.name)
        feeds = encode(
            preprocessor,
            [row["text"] for row in rows],
            [row["text_pair"] for row in rows] if paired else None,
            config,
            max_length,
        )
        return Examples(
            split.role,
            split.ids[: len(rows)],
            feeds,
            tuple(range(len(feeds))),
            labels_of(rows),
            padding(preprocessor),
            {"labels": label_names(config)},
        )

    def example_feeds(
        self, config: dict[str, Any], preprocessor: Any, *, batch: int, length: int
    ) -> Feeds:
        """Random tokens, (batch, length)."""
        return example_text_feeds(config, preprocessor, batch=batch, length=length, types=True)


TASK = TextClassification()
