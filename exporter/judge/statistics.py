"""Intervals for paired comparisons: what the evidence shows about a difference, and what not.

Confidence is one-sided everywhere: each of the two bounds is crossed by the truth with at most
probability 1 - confidence. Arrays broadcast, so that thousands of releases can be simulated.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, betaincinv, ndtri, stdtrit

Floats = NDArray[np.float64]

# Tango's interval alone accepts up to 6.6 % at the margin when answers hardly ever flip. With
# this share of one example taken off the difference it never accepted more than 5 %, enumerated
# exactly for 60 to 4,000 examples, margins of 0.5 to 5 points, discordances up to 15 %.
CONTINUITY = 0.25
# A bootstrap over fewer documents (or embeddings) than this does not know its own tails.
MINIMUM_CLUSTERS = 20
BISECTIONS = 60
POWER = 0.8
# Bootstrap chunks hold about this many weights at once: 16 MiB of float64.
CHUNK_CELLS = 1 << 21
MOST_EXAMPLES = 10**7
# Each one sorts nothing, but walks over every value.
QUANTILE_RESAMPLES = 200


def paired_difference(
    lost: ArrayLike, gained: ArrayLike, count: ArrayLike, confidence: float
) -> tuple[Floats, Floats]:
    """Bounds of the drop in accuracy (reference − candidate, a share) from paired outcomes.

    Tango's score interval for paired proportions (Statistics in Medicine 17, 1998, 891–908)
    with a small continuity correction. With no flips at all the upper bound is about 3.2/count,
    not zero.

    Args:
        lost: examples that only the reference got right.
        gained: examples that only the candidate got right.
        count: all examples, at least 1.
        confidence: one-sided, of each bound.
    """
    b, c, n = np.broadcast_arrays(
        np.asarray(lost, np.float64), np.asarray(gained, np.float64), np.asarray(count, np.float64)
    )
    return -_upper_difference(c, b, n, confidence), _upper_difference(b, c, n, confidence)


def _upper_difference(lost: Floats, gained: Floats, count: Floats, confidence: float) -> Floats:
    """The largest drop that the evidence does not rule out."""
    z = float(ndtri(confidence))
    low = (lost - gained) / count
    high = np.ones_like(low)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        excluded = _score(lost, gained, count, middle) <= -z
        high = np.where(excluded, middle, high)
        low = np.where(excluded, low, middle)
    return high


def _score(lost: Floats, gained: Floats, count: Floats, drop: Floats) -> Floats:
    """Standardised distance of the observed drop from `drop`; falls as `drop` grows."""
    # The share of gained examples that is likeliest where the true drop is `drop`.
    first = 2 * count
    second = -lost - gained + (2 * count - lost + gained) * drop
    third = -gained * drop * (1 - drop)
    root = np.sqrt(np.maximum(second**2 - 4 * first * third, 0))
    share = (root - second) / (2 * first)
    variance = count * (2 * share + drop * (1 - drop))
    distance = lost - gained - count * drop + CONTINUITY
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(variance > 0, distance / np.sqrt(variance), -np.inf)


def mcnemar_p(lost: int, gained: int) -> float:
    """Exact two-sided p-value that flips go both ways equally often.

    A large value is no evidence of equality; it is reported, never judged.
    """
    flips = lost + gained
    return min(1.0, 2 * float(bdtr(min(lost, gained), flips, 0.5))) if flips else 1.0


def required_examples(
    discordance: float, margin: float, confidence: float, *, drop: float = 0.0, power: float = POWER
) -> int | None:
    """Examples with which a true drop of `drop` is shown to be inside `margin`.

    Args:
        discordance: share of examples whose answer flips, in either direction.
        margin: largest drop that is accepted, a share.
        power: probability of success with that many examples.

    Returns:
        The number, or None when no number can show it because `drop` reaches the margin.
    """
    room = margin - drop
    if room <= 0:
        return None
    flips = max(discordance, drop)
    # The interval measures distance by the spread that answers would have at the margin, which is
    # more than they have: the root that `_score` finds, for shares instead of counts.
    second = (2 - drop) * margin - flips
    third = (flips - drop) / 2 * margin * (1 - margin)
    gained = (math.sqrt(second**2 + 8 * third) - second) / 4
    at_margin = math.sqrt(2 * gained + margin * (1 - margin))
    spread = float(ndtri(confidence)) * at_margin
    spread += float(ndtri(power)) * math.sqrt(max(flips - drop**2, 0.0))
    # n·room − CONTINUITY = √n·spread, solved for √n
    root = (spread + math.sqrt(spread**2 + 4 * room * CONTINUITY)) / (2 * room)
    return max(math.ceil(root**2), zero_flips_needed(margin, confidence))


def zero_flips_needed(margin: float, confidence: float) -> int:
    """Examples that show a drop below `margin` when not one answer flips."""
    # (n·margin − CONTINUITY)² = z²·n·margin·(1 − margin), solved for n·margin
    spread = float(ndtri(confidence)) ** 2 * (1 - margin)
    half = CONTINUITY + spread / 2
    return math.ceil((half + math.sqrt(half**2 - CONTINUITY**2)) / margin)


def ratio_bounds(
    differences: ArrayLike, weights: ArrayLike, *, confidence: float, resamples: int, seed: int
) -> tuple[float, float, float]:
    """Estimate and bounds of Σ differences / Σ weights, with whole clusters resampled.

    The studentized bootstrap (Efron and Tibshirani 1993, chapter 12): second-order right for the
    skewed sums that documents of very different lengths give. With `differences` the loss
    that a document's tokens gained and `weights` its tokens, this is the log of the perplexity
    ratio; with weights of 1 it is a mean.

    Args:
        differences: (clusters,).
        weights: (clusters,), positive.

    Returns:
        (estimate, low, high); a bound is infinite where the evidence cannot bound it, and all
        three are NaN where an input is not finite.
    """
    d = np.asarray(differences, np.float64)
    w = np.asarray(weights, np.float64)
    if not (len(d) and np.isfinite(d).all() and np.isfinite(w).all()):
        return math.nan, math.nan, math.nan
    estimate = float(d.sum() / w.sum())
    # sums that give each resample's ratio and its standard error by linearisation
    columns = np.stack([d, w, d * d, d * w, w * w], axis=1)  # (clusters, 5)
    error = _linear_error(columns.sum(axis=0)[None], np.asarray([estimate]))[0]
    if error == 0:
        return estimate, estimate, estimate
    rng = np.random.default_rng(seed)
    sums = np.concatenate(
        [
            _resampled_sums(columns, size, rng)
            for size in _chunks(resamples, max(1, CHUNK_CELLS // len(d)))
        ]
    )
    ratios = sums[:, 0] / sums[:, 1]
    errors = _linear_error(sums, ratios)
    with np.errstate(divide="ignore", invalid="ignore"):
        pivots = np.where(errors > 0, (ratios - estimate) / errors, np.sign(ratios - estimate))
        # a resample without spread says nothing about how far off it is
        pivots = np.where((errors == 0) & (ratios != estimate), pivots * np.inf, pivots)
    below, above = np.quantile(pivots, [1 - confidence, confidence], method="inverted_cdf")
    # A document that weighs much pulls the ratio to itself and so hides its own deviation; the
    # jackknife undoes that (about 6 % accepted at the margin became 5 % in simulation).
    shares = w / w.sum()
    deviations = (d - estimate * w) / np.where(shares < 1, 1 - shares, np.nan)
    scale = float(np.sqrt((deviations**2).sum()) / w.sum())
    # Where a few long documents carry the spread, resampling them sees too little of it: the wider
    # of the bootstrap and of Student's t with Satterthwaite's degrees of freedom (1946; for single
    # squares of a normal variable, three times the sum squared over the sum of squares).
    squares = deviations**2
    freedom = max(3 * float(squares.sum() ** 2 / (squares**2).sum()) - 1, 1.0)
    student = float(stdtrit(freedom, confidence))
    return (
        estimate,
        estimate - max(float(above), student) * scale,
        estimate + max(-float(below), student) * scale,
    )


def required_clusters(
    differences: ArrayLike,
    weights: ArrayLike,
    limit: float,
    confidence: float,
    *,
    high: float = -math.inf,
    power: float = POWER,
) -> int | None:
    """Clusters like these with which their ratio is shown to be below `limit`.

    Args:
        high: the upper bound that these gave; where few of them carry the spread it lies farther
            off than a normal's, and comes closer with the root of their number.

    Returns:
        The number, or None when the ratio itself reaches the limit.
    """
    d, w = np.asarray(differences, np.float64), np.asarray(weights, np.float64)
    ratio = max(float(d.sum() / w.sum()), 0.0)
    if ratio >= limit:
        return None
    spread = float(np.sqrt(((d - ratio * w) ** 2).sum()) / w.sum()) * math.sqrt(len(d))
    z = float(ndtri(confidence)) + float(ndtri(power))
    normal = (z * spread / (limit - ratio)) ** 2
    seen = len(d) * ((high - ratio) / (limit - ratio)) ** 2 if math.isfinite(high) else 0.0
    return max(1, math.ceil(max(normal, seen)))


def _linear_error(sums: Floats, ratios: Floats) -> Floats:
    """Standard errors of ratios from (n, 5) sums of d, w, d², dw, w²."""
    squares = sums[:, 2] - 2 * ratios * sums[:, 3] + ratios**2 * sums[:, 4]
    # below the rounding error of the sums themselves there is no spread
    squares = np.where(squares > 1e-12 * (sums[:, 2] + ratios**2 * sums[:, 4]), squares, 0.0)
    return np.asarray(np.sqrt(squares) / sums[:, 1], np.float64)


def _resampled_sums(columns: Floats, resamples: int, rng: np.random.Generator) -> Floats:
    """Column sums (resamples, 5) over as many clusters as there are, drawn with replacement."""
    count = len(columns)
    drawn = rng.integers(0, count, (resamples, count))
    drawn += (np.arange(resamples) * count)[:, None]
    times = np.bincount(drawn.reshape(-1), minlength=resamples * count)
    return np.asarray(times.reshape(resamples, count).astype(np.float64) @ columns, np.float64)


def _chunks(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]


def quantile_bounds(
    values: ArrayLike, quantile: float, confidence: float
) -> tuple[float, float, float]:
    """Estimate and distribution-free bounds of a quantile, from order statistics.

    Returns:
        (estimate, low, high); a bound is infinite where there are too few values for it.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    n = len(ordered)
    if not n or not np.isfinite(ordered).all():
        return math.nan, math.nan, math.nan
    estimate = float(np.quantile(ordered, quantile))
    # of n values, how many lie below the true quantile is binomial
    at_most = np.asarray(bdtr(np.arange(n), n, quantile))  # P(count ≤ k), k = 0 … n−1
    above = np.flatnonzero(at_most >= confidence)
    below = np.flatnonzero(at_most <= 1 - confidence)
    high = float(ordered[above[0]]) if len(above) else math.inf
    low = float(ordered[below[-1]]) if len(below) else -math.inf
    return estimate, low, high


def clustered_quantile_low(
    values: ArrayLike, owner: ArrayLike, quantile: float, confidence: float, *, seed: int
) -> float:
    """Lower bound of a quantile of values that come in clusters, whole clusters resampled.

    Args:
        values: (n,).
        owner: (n,), the cluster of each, 0 to clusters − 1.
    """
    v, clusters = np.asarray(values, np.float64), np.asarray(owner, np.int64)
    order = np.argsort(v, kind="stable")
    ordered, belongs = v[order], clusters[order]
    count = int(clusters.max()) + 1
    rng = np.random.default_rng(seed)
    found = np.empty(QUANTILE_RESAMPLES)
    for i in range(QUANTILE_RESAMPLES):
        times = np.bincount(rng.integers(0, count, count), minlength=count)[belongs]
        reached = np.cumsum(times)
        found[i] = ordered[np.searchsorted(reached, quantile * reached[-1])]
    return float(np.quantile(found, 1 - confidence, method="inverted_cdf"))


def proportion_bounds(hits: int, count: int, confidence: float) -> tuple[float, float]:
    """Exact bounds of a share (Clopper and Pearson 1934), each one-sided."""
    low = float(betaincinv(hits, count - hits + 1, 1 - confidence)) if hits else 0.0
    high = float(betaincinv(hits + 1, count - hits, confidence)) if hits < count else 1.0
    return low, high


def required_for_share(
    share: float, limit: float, confidence: float, *, power: float = POWER
) -> int | None:
    """Examples with which a share like this is shown to be at most `limit`.

    Returns:
        The number for `proportion_bounds`, to within 2 %; None when the share itself reaches the
        limit, or is too close to it.
    """
    if share >= limit or not limit < 1:
        return None
    count = math.ceil(math.log(1 - confidence) / math.log(1 - limit))
    while count < MOST_EXAMPLES:
        # hits with which the upper bound is within the limit are those as rare as 1 − confidence
        hits = np.arange(math.ceil(limit * count) + 1)
        allowed = int((bdtr(hits, count, limit) <= 1 - confidence).sum()) - 1
        if float(bdtr(allowed, count, share)) >= power:
            return count
        count = math.ceil(1.02 * count)
    return None


def values_for_quantile(quantile: float, confidence: float) -> int:
    """Values without which a quantile has no upper bound at all."""
    return math.ceil(math.log(1 - confidence) / math.log(quantile))
