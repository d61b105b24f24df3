"""How long to go on timing, and what the rounds show: a ratio whose error holds at every look.

The times are looked at after `first`, 2 × `first`, 4 × `first` … rounds, and timing stops at the
first look that decides. Whoever looks more often errs more often (Armitage, McPherson and Rowe
1969), so each look has a share of the error: equal shares as in Pocock (Biometrika 64, 1977,
191–199), added up by the plain union bound. Pocock's own boundary and Lan and DeMets (Biometrika
70, 1983, 659–663) get a little more out of a look, but lean on independent increments, which the
noise of a shared machine does not have; the union bound leans on nothing.

benchmarks/latency_simulation.py shows the error that is left under noise that repeats, bursts,
drifts and has heavy tails.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

Floats = NDArray[np.float64]

LOOKS = 6
# Both models are opened anew this many times between two looks. Where the weights of a session
# come to lie in memory makes it up to 2 % faster or slower for as long as it lives; with one
# opening a model measured against itself came out 4 standard errors from 1.
OPENINGS = 6
TRIM = 0.2
LARGEST_AUTOCORRELATION = 0.97


def look_confidence(confidence: float, looks: int) -> float:
    """Confidence of each bound at a look, so that all looks together have `confidence`.

    Args:
        confidence: one-sided, of the verdict.
        looks: taken so far; 0 when the number of rounds was fixed beforehand.
    """
    return 1 - (1 - confidence) / LOOKS if looks else confidence


def next_look(rounds: int, looks: int) -> int | None:
    """Rounds at the look that follows the one at `rounds`; None when `looks` have been taken."""
    return 2 * rounds if looks < LOOKS else None


def paired_ratio(
    candidate: ArrayLike,
    reference: ArrayLike,
    *,
    confidence: float,
    blocks: Sequence[int] = (),
) -> tuple[float, float, float]:
    """Typical ratio of paired times, with one-sided bounds; see `log_ratio_bounds`.

    Args:
        candidate, reference: (rounds,), positive.
        blocks: rounds of each opening of the models, in order; their sum is `rounds`.

    Returns:
        (ratio, low, high); NaN when a time is not a positive number.
    """
    x, y = np.asarray(candidate, np.float64), np.asarray(reference, np.float64)
    if len(x) < 2 or not (
        np.isfinite(x).all() and np.isfinite(y).all() and min(x.min(), y.min()) > 0
    ):
        return math.nan, math.nan, math.nan
    estimate, half = log_ratio_bounds(np.log(x / y), confidence=confidence, blocks=blocks)
    with np.errstate(over="ignore"):
        ratio, low, high = np.exp([estimate, estimate - half, estimate + half])
    return float(ratio), float(low), float(high)


def log_ratio_bounds(
    logs: ArrayLike, *, confidence: float, blocks: Sequence[int] = ()
) -> tuple[Floats, Floats]:
    """Mean of log ratios without the fifth at either end, and the half-width of its interval.

    A burst of other work hits single rounds and not a trimmed mean. Its influence function is the
    winsorized value (Tukey and McLaughlin 1963). Two standard errors come from those values, each
    with its own Student quantile, and the wider interval counts:

    - from sums over blocks, whatever goes on inside them (batch means; Law and Kelton 1984);
      blocks of unequal size have as many degrees of freedom as equal ones of the same weight;
    - from single rounds, widened for their autocorrelation at lag 1, taken at one standard error
      above its unbiased estimate (the effective sample size of an AR(1) series).

    Resampling rounds, as a plain bootstrap does, takes them for independent: under an
    autocorrelation of 0.5 it let 28 % of releases at the limit through where 5 % was stated.

    Args:
        logs: (..., rounds), finite, at least 2 rounds.
        confidence: one-sided, of each bound.
        blocks: rounds that belong together; with fewer than two, about √rounds equal ones.

    Returns:
        estimate and half-width, each (...).
    """
    values = np.asarray(logs, np.float64)
    count = values.shape[-1]
    sizes = np.asarray(blocks if len(blocks) > 1 else _equal_blocks(count), np.int64)
    if sizes.sum() != count or sizes.min() < 1:
        raise ValueError(f"blocks must add up to {count} rounds, got {sizes.sum()}")
    ordered = np.sort(values, axis=-1)
    cut = int(count * TRIM)
    kept = (count - 2 * cut) / count
    estimate = ordered[..., cut : count - cut].mean(axis=-1)
    influence = np.clip(
        values, ordered[..., cut, None], ordered[..., count - cut - 1, None]
    )  # (..., rounds), winsorized
    influence = influence - influence.mean(axis=-1, keepdims=True)
    by_block = _block_half(influence, sizes, confidence)
    by_round = _round_half(influence, kept, confidence)
    return estimate, np.maximum(by_block, by_round) / kept


def _equal_blocks(count: int) -> list[int]:
    blocks = max(2, round(math.sqrt(count)))
    return [len(part) for part in np.array_split(np.arange(count), blocks)]


def _block_half(influence: Floats, sizes: NDArray[np.int64], confidence: float) -> Floats:
    """Half-width of the mean of `influence` (..., rounds), from its sums over blocks."""
    count = influence.shape[-1]
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    sums = np.add.reduceat(influence, starts, axis=-1)  # (..., blocks)
    # A large block pulls the mean to itself and so hides its own deviation; for equal blocks
    # this is the usual blocks / (blocks − 1).
    share = sizes / count
    weight = float((share**2).sum())
    hidden = weight / float((share**2 * (1 - 2 * share + weight)).sum())
    error = np.sqrt((sums**2).sum(axis=-1) * hidden) / count
    freedom = max(1 / weight - 1, 1.0)
    return np.asarray(error * stdtrit(freedom, confidence), np.float64)


def _round_half(influence: Floats, kept: float, confidence: float) -> Floats:
    """Half-width of the mean of `influence` (..., rounds) as a series with autocorrelation."""
    count = influence.shape[-1]
    squares = (influence**2).sum(axis=-1)
    error = np.sqrt(squares / (count - 1) / count)
    products = (influence[..., 1:] * influence[..., :-1]).sum(axis=-1)
    lag = products / np.where(squares > 0, squares, 1.0)
    # the estimate is too low by (1 + 3ρ)/n (Kendall 1954); then one standard error on top
    lag = lag + (1 + 3 * lag) / count + np.sqrt(np.maximum(1 - lag**2, 0.0) / count)
    lag = np.clip(lag, 0.0, LARGEST_AUTOCORRELATION)
    widening = (1 + lag) / (1 - lag)
    freedom = np.maximum(count * kept / widening - 1, 1.0)
    return np.asarray(error * np.sqrt(widening) * stdtrit(freedom, confidence), np.float64)
