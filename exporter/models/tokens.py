"""Next tokens: how well a language model predicts them, and how far it is from a reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporter.models.examples import Batch, Outputs

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Window:
    """What one window of tokens came to.

    Attributes:
        nll: nats, summed.
        tokens: predicted.
        correct: whose likeliest token is the one that follows.
        kl: KL(reference ‖ candidate), nats, summed; 0 without a reference.
        flipped: whose likeliest token differs from the reference's.
        token_kl: (tokens,) float16, nats; three digits are all that a percentile needs.
        surprise: largest divergence, its position, the reference's and the candidate's likeliest
            token there; None where no likeliest token differs.
    """

    nll: float
    tokens: int
    correct: int
    kl: float
    flipped: int
    token_kl: NDArray[np.float16]
    surprise: tuple[float, int, int, int] | None


def score_windows(outputs: Outputs, batch: Batch) -> list[Window]:
    """One Window a feed, from `logits` and, where given, `reference` (batch, length, vocabulary).

    Windows are taken one after the other: logits are the largest tensor there is.
    """
    ids = batch.feeds["input_ids"]
    mask = batch.feeds.get("attention_mask")
    mask = np.ones_like(ids) if mask is None else mask
    others = outputs.get("reference")
    return [
        _window(
            outputs["logits"][row],
            None if others is None else others[row],
            ids[row],
            mask[row].astype(bool),
        )
        for row in range(len(ids))
    ]


def _window(
    logits: Floats, reference: Floats | None, tokens: NDArray[np.int64], kept: NDArray[np.bool_]
) -> Window:
    use = kept[1:] & kept[:-1]
    targets = tokens[1:][use]
    shares = _log_softmax(logits[:-1][use])  # (tokens, vocabulary)
    nll = -shares[np.arange(len(targets)), targets].astype(np.float64)
    best = shares.argmax(1)
    # argmax stops at a NaN; a row that holds one predicts nothing.
    correct = (best == targets) & ~np.isnan(nll)
    kl, flipped, surprise = np.zeros(0), np.zeros(0, bool), None
    if reference is not None:
        theirs = _log_softmax(reference[:-1][use])
        kl = divergence(theirs, shares)
        expected = theirs.argmax(1)
        flipped = (best != expected) | np.isnan(kl)
        if flipped.any():
            at = int(np.where(flipped, np.nan_to_num(kl, nan=np.inf), -1.0).argmax())
            position = int(np.flatnonzero(use)[at])
            surprise = (float(kl[at]), position, int(expected[at]), int(best[at]))
    with np.errstate(over="ignore"):
        narrow = kl.astype(np.float16)
    return Window(
        float(nll.sum()),
        len(targets),
        int(correct.sum()),
        float(kl.sum()),
        int(flipped.sum()),
        narrow,
        surprise,
    )


def divergence(reference: Floats, candidate: Floats) -> NDArray[np.float64]:
    """KL(reference ‖ candidate), nats, of each row of log-probabilities; (n,) from (n, vocabulary).

    What the reference rules out altogether adds nothing.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        terms = np.exp(reference)
        terms *= reference - candidate
        terms[np.isneginf(reference)] = 0
        total = terms.sum(1, dtype=np.float64)
    # rounding can leave an equal pair a hair below zero
    return np.asarray(np.where(np.isnan(total), np.nan, np.maximum(total, 0.0)), np.float64)


def _log_softmax(logits: Floats) -> Floats:
    """Log-probabilities, (n, vocabulary) float32; a NaN spreads over its row."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        shifted = logits.astype(np.float32, copy=False) - logits.max(1, keepdims=True)
        total = np.log(np.exp(shifted).sum(1, dtype=np.float64, keepdims=True))
        return np.asarray(shifted - total.astype(np.float32), np.float32)
