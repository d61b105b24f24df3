"""How near one model's outputs are to another's: flips, top answers, cosine, largest difference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.judge.reading import Agreement
from exporter.models.examples import Feeds, Outputs
from exporter.models.runner import main_output
from exporter.models.scores import Scores

TOP = 5


@dataclass(frozen=True)
class Answers:
    """What one model answered to the calls here, and the calls themselves."""

    calls: tuple[Feeds, ...]
    outputs: tuple[Outputs, ...]
    scores: Scores


def agreement(reference: Answers, outputs: tuple[Outputs, ...], scores: Scores) -> Agreement:
    """Outputs against the reference's here, position by position, padding left out."""
    cosines, flips, shared, decisions, chosen = [], 0, 0.0, 0, False
    for feeds, theirs, ours in zip(reference.calls, reference.outputs, outputs, strict=True):
        name = "logits" if "logits" in theirs else next(iter(theirs))
        before = _positions(theirs[name], feeds)
        after = _positions(main_output(ours, name), feeds)
        cosines.append(_cosines(before, after))
        decisions += len(before)
        if name == "logits" and before.shape[1] > 1:
            chosen = True
            broken = ~np.isfinite(after).all(1)
            flips += int(((before.argmax(1) != after.argmax(1)) | broken).sum())
            shared += float(_top_shared(before, after).sum())
    return Agreement(
        decisions,
        flips if chosen else None,
        shared / decisions if chosen else None,
        float(np.concatenate(cosines).mean()),
        {name: value for name, value in scores.summary().items() if np.isfinite(value)},
    )


def _positions(output: NDArray[Any], feeds: Feeds) -> NDArray[np.float64]:
    """(batch, ..., width) as (positions, width) in float64, padded tokens left out."""
    array = np.asarray(output, np.float64)
    mask = feeds.get("attention_mask")
    if mask is not None and array.ndim == 3 and array.shape[:2] == mask.shape:
        array = array[mask != 0]
    rows: NDArray[np.float64] = array.reshape(-1, array.shape[-1] if array.ndim > 1 else 1)
    return rows


def _cosines(before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        norms = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
        cosine: NDArray[np.float64] = (before * after).sum(1) / norms
    return np.nan_to_num(np.clip(cosine, -1, 1), nan=0.0)


def _top_shared(before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of each row's likeliest answers that both rows have among theirs."""
    k = min(TOP, before.shape[1] - 1)
    ours = np.argpartition(-np.nan_to_num(after, nan=-np.inf), k, axis=1)[:, :k]
    theirs = np.argpartition(-before, k, axis=1)[:, :k]
    shared: NDArray[np.float64] = (ours[:, :, None] == theirs[:, None, :]).any(2).mean(1)
    return shared


def difference(here: tuple[Outputs, ...], there: tuple[Outputs, ...]) -> float | None:
    """Largest absolute difference of float outputs, over the RMS here where that exceeds 1.

    None where there are none; what is not a number there and is one here is infinitely far off,
    told as the largest float.
    """
    largest = None
    for ours, theirs in zip(here, there, strict=True):
        for name, array in ours.items():
            if array.dtype.kind != "f":
                continue
            one, other = array.astype(np.float64), theirs[name].astype(np.float64)
            scale = max(1.0, float(np.sqrt(np.mean(one**2))))
            gap = np.abs(one - other) / scale
            gap = np.where(np.isnan(one) & np.isnan(other), 0.0, gap)
            worst = float(np.nan_to_num(gap, nan=np.inf).max(initial=0.0))
            largest = max(largest or 0.0, min(worst, float(np.finfo(np.float64).max)))
    return largest


def same_tokens(here: Any, there: Any) -> float | None:
    if here is None or there is None:
        return None
    return float((np.asarray(here) == np.asarray(there)).mean())
