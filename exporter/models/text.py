"""Texts into feeds: what the tasks that read text have in common."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.errors import DataError, ModelError
from exporter.models.examples import Examples, Feeds, R, Split

# The value that fills an input; a tokenizer's own padding id takes the place of the first 0.
PADDED_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# Models whose positions start after the padding id: RoBERTa and its kin.
_SHIFTED_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer", "data2vec-text")


def content_id(*parts: Any) -> str:
    """SHA-256 over JSON-ready content."""
    text = json.dumps(parts, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def feeds_id(row: Mapping[str, Any]) -> str:
    """SHA-256 over the arrays of a row that already is feeds."""
    digest = hashlib.sha256()
    for name, array in sorted(feeds_of(row).items()):
        digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def feeds_of(row: Mapping[str, Any]) -> Feeds:
    """The arrays of a row, by graph input name; the label is none of them."""
    return {k: v for k, v in row.items() if k != "label" and isinstance(v, np.ndarray)}


def are_feeds(split: Split[Any]) -> bool:
    """True when rows hold model inputs instead of text."""
    return bool(split.rows) and "text" not in split.rows[0] and bool(feeds_of(split.rows[0]))


def prepare_feeds(
    split: Split[R],
    config: dict[str, Any],
    limit: int | None,
    *,
    labelled: bool,
    next_tokens: bool = False,
) -> Examples[R]:
    """Rows that already are feeds, passed straight through.

    Args:
        next_tokens: they are what is predicted; rows in which there is none are left out.

    Raises:
        ModelError: the rows are raw, so a preprocessor would be needed.
        DataError: no row is left.
    """
    kept = [
        (row, identity)
        for row, identity in zip(split.rows, split.ids, strict=True)
        if not next_tokens or _has_next_token(row)
    ][:limit]
    if split.rows and not kept:
        raise DataError(
            f"the {split.role.name} split",
            "must hold a document of at least two tokens",
            remedy="give longer documents.",
        )
    rows, ids = [row for row, _ in kept], tuple(identity for _, identity in kept)
    feeds = tuple(feeds_of(row) for row in rows)
    if not feeds or not all(feeds):
        raise ModelError(
            "the model",
            "must come with a tokenizer or image processor to read this data",
            remedy="put its files beside the model, or give data whose columns are model inputs.",
        )
    varies = [n for n in feeds[0] if len({f[n].shape for f in feeds if n in f}) > 1]
    labels = labels_of(rows) if labelled else None
    pad = dict.fromkeys((*varies, *(n for n in feeds[0] if n in PADDED_INPUTS)), 0)
    owner = tuple(range(len(feeds)))
    return Examples(split.role, ids, feeds, owner, labels, pad, {"labels": label_names(config)})


def _has_next_token(row: Mapping[str, Any]) -> bool:
    """True when two tokens stand beside each other, neither of them padding."""
    tokens = row.get("input_ids")
    if not isinstance(tokens, np.ndarray):
        return True
    mask = row.get("attention_mask")
    kept = np.asarray(mask if isinstance(mask, np.ndarray) else np.ones_like(tokens), bool)
    return bool((kept[1:] & kept[:-1]).any())


def labels_of(rows: Sequence[Mapping[str, Any]]) -> NDArray[np.int64]:
    """The integer classes of rows, (n,)."""
    return np.asarray([row["label"] for row in rows], np.int64)


def label_names(config: dict[str, Any]) -> list[str]:
    """The model's names of its classes, in order; empty when it has none."""
    names = config.get("id2label") or {}
    return [str(names[key]) for key in sorted(names, key=int)]


def model_length(tokenizer: Any, config: dict[str, Any], wanted: int) -> int:
    """Tokens that a feed may hold: what is wanted, capped by tokenizer and positions."""
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    limits = [wanted, int(getattr(tokenizer, "model_max_length", wanted))]
    if isinstance(positions, int) and positions > 0:
        shifted = config.get("model_type") in _SHIFTED_POSITIONS
        limits.append(positions - (int(config.get("pad_token_id") or 0) + 1) * shifted)
    return min(limits)


def padding(tokenizer: Any) -> dict[str, int]:
    """The padding value of each input that a tokenizer makes."""
    pad = getattr(tokenizer, "pad_token_id", None)
    return {**dict.fromkeys(PADDED_INPUTS, 0), "input_ids": 0 if pad is None else int(pad)}


def encode(
    tokenizer: Any,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    config: dict[str, Any],
    max_length: int,
) -> tuple[Feeds, ...]:
    """One feed a text (or pair), with special tokens, cut to the model's length."""
    if not texts:
        return ()
    encoded = tokenizer(
        list(texts),
        None if pairs is None else list(pairs),
        truncation=True,
        max_length=model_length(tokenizer, config, max_length),
        verbose=False,
    )
    names = [n for n in encoded if n in PADDED_INPUTS]
    if not has_token_types(tokenizer, config):
        names = [n for n in names if n != "token_type_ids"]
    return tuple(
        {n: np.asarray(values, np.int64) for n, values in zip(names, row, strict=True)}
        for row in zip(*(encoded[n] for n in names), strict=True)
    )


def has_token_types(tokenizer: Any, config: dict[str, Any]) -> bool:
    """True when the tokenizer emits token types and the model, if it is known, reads them."""
    emits = "token_type_ids" in getattr(tokenizer, "model_input_names", ())
    return emits and bool(config.get("type_vocab_size", 0) if config else True)


def require_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], role: str) -> None:
    """Refuse rows whose text is missing or no text.

    Raises:
        DataError: naming the column and what it holds.
    """
    for row in rows:
        for column in columns:
            if not isinstance(row.get(column), str):
                raise DataError(
                    f"the {role} split",
                    f"every {column} must be text",
                    got=type(row.get(column)).__name__,
                    remedy="fill or remove those rows, or name another column.",
                )


def vocabulary_size(config: dict[str, Any]) -> int | None:
    """How many tokens the model knows; None where its configuration does not say."""
    found = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    return found if isinstance(found, int) else None


def refuse_unknown_tokens(feeds: Feeds, config: dict[str, Any], place: str) -> None:
    """Refuse token ids that the model does not know: below 0 it would count from the end.

    Raises:
        DataError: one is below 0 or not in the vocabulary.
    """
    ids, vocabulary = feeds.get("input_ids"), vocabulary_size(config)
    if ids is None or vocabulary is None or not ids.size:
        return
    wrong = ids[(ids < 0) | (ids >= vocabulary)]
    if wrong.size:
        raise DataError(
            place,
            f"input_ids must be tokens of the model, 0 to {vocabulary - 1}",
            got=wrong.flat[0],
            remedy="make them with the tokenizer that lies beside the model.",
        )


def example_text_feeds(
    config: dict[str, Any], tokenizer: Any, *, batch: int, length: int, types: bool
) -> Feeds:
    """Seeded random tokens, (batch, length) each.

    Raises:
        ModelError: neither configuration nor tokenizer tells the size of the vocabulary.
    """
    vocabulary = vocabulary_size(config)
    if not vocabulary and tokenizer is not None:
        vocabulary = len(tokenizer)
    if not vocabulary:
        raise ModelError(
            "the model",
            "must tell its vocabulary size to make example inputs",
            remedy="put config.json or tokenizer files beside it.",
        )
    ids = np.random.default_rng(0).integers(0, int(vocabulary), (batch, length), np.int64)
    # A mask is often rebuilt from padding ids; a random one among the tokens would be a hole.
    pad = config.get("pad_token_id")
    if isinstance(pad, int):
        ids[ids == pad] = (pad + 1) % int(vocabulary)
    feeds: Feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    if types and has_token_types(tokenizer, config):
        feeds["token_type_ids"] = np.zeros_like(ids)
    return feeds
