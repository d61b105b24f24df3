"""Flips worth reading: test examples that the candidate answers otherwise than the reference."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.models.examples import Examples, Split, Test
from exporter.models.scores import Scores
from exporter.report.document import Flip

MOST = 8
CHARACTERS = 240
THUMBNAIL = 64  # pixels


def worth_reading(
    reference: Scores,
    candidate: Scores,
    split: Split[Test],
    examples: Examples[Test],
    tokenizer: Any,
) -> tuple[Flip, ...]:
    """At most MOST flips: answers lost first, then won, then wrong both times, by divergence.

    Args:
        candidate: related to the reference, see `Task.relate`.
        tokenizer: turns tokens into text; None leaves out flips that need it.
    """
    rows = dict(zip(split.ids, split.rows, strict=True))
    if "surprise" in candidate.arrays:
        found = _next_tokens(candidate, examples, tokenizer) if tokenizer is not None else iter(())
    elif "prediction" in candidate.values:
        found = _classes(reference, candidate, rows, examples.meta.get("labels") or [])
    else:
        found = _retrievals(reference, candidate, rows)
    return tuple(flip for flip, _ in zip(found, range(MOST), strict=False))


def _classes(
    reference: Scores,
    candidate: Scores,
    rows: Mapping[str, Mapping[str, Any]],
    labels: list[Any],
) -> Iterator[Flip]:
    def named(index: float) -> str:
        i = int(index)
        if i < 0:
            return "no answer"
        return str(labels[i]) if i < len(labels) else str(i)

    before, after = reference.values["prediction"], candidate.values["prediction"]
    kl = candidate.values["kl"]
    for i in _ordered(before != after, reference, candidate, kl):
        row = rows[candidate.ids[i]]
        yield Flip(
            text=_text(row),
            expected=named(candidate.values["label"][i]),
            reference=named(before[i]),
            candidate=named(after[i]),
            kl_nats=float(kl[i]),
            image=_thumbnail(row),
        )


def _retrievals(
    reference: Scores, candidate: Scores, rows: Mapping[str, Mapping[str, Any]]
) -> Iterator[Flip]:
    said = {True: "finds its own document", False: "finds another"}
    before, after = reference.values["correct"] == 1, candidate.values["correct"] == 1
    for i in _ordered(before != after, reference, candidate, 1 - candidate.values["cosine"]):
        yield Flip(
            text=_text(rows[candidate.ids[i]]),
            expected=said[True],
            reference=said[bool(before[i])],
            candidate=said[bool(after[i])],
        )


def _next_tokens(candidate: Scores, examples: Examples[Test], tokenizer: Any) -> Iterator[Flip]:
    places = candidate.arrays["surprise"]  # (documents, 5): nats, feed, position, both tokens
    for document in np.argsort(-places[:, 0], kind="stable"):
        nats, feed, position, theirs, ours = places[document].tolist()
        if nats < 0:
            continue
        tokens = examples.feeds[int(feed)]["input_ids"]
        at = int(position)
        yield Flip(
            text="…" + tokenizer.decode(tokens[max(0, at - 63) : at + 1])[-CHARACTERS:],
            expected=tokenizer.decode(tokens[at + 1 : at + 2]),
            reference=tokenizer.decode([int(theirs)]),
            candidate=tokenizer.decode([int(ours)]),
            kl_nats=nats,
        )


def _ordered(
    flipped: NDArray[np.bool_], reference: Scores, candidate: Scores, distance: NDArray[np.float64]
) -> list[int]:
    """Indices of what flipped: lost before won before neither, the most distant first."""
    lost = reference.values["correct"] > candidate.values["correct"]
    won = reference.values["correct"] < candidate.values["correct"]
    kind = np.where(lost, 0, np.where(won, 1, 2))
    order = np.lexsort((-np.nan_to_num(distance, nan=np.inf), kind))
    return [int(i) for i in order if flipped[i]]


def _text(row: Mapping[str, Any]) -> str:
    parts = [str(row[k]) for k in ("text", "text_pair", "positive") if row.get(k) is not None]
    text = " ⏐ ".join(parts)
    return text if len(text) <= CHARACTERS else text[: CHARACTERS - 1] + "…"


def _thumbnail(row: Mapping[str, Any]) -> str:
    """A small PNG as base64, "" where the row holds no picture."""
    if "image" not in row:
        return ""
    from exporter.models.images import open_image

    picture = open_image(row["image"]).convert("RGB")
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
