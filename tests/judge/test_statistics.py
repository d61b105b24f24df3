"""The bounds keep what they promise: enumerated exactly where possible, simulated elsewhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import gammaln

from exporter.judge import statistics
from exporter.judge.statistics import (
    mcnemar_p,
    paired_difference,
    quantile_bounds,
    ratio_bounds,
    required_clusters,
    required_examples,
    values_for_quantile,
    zero_flips_needed,
)

MARGIN = 0.01


def _acceptance(count: int, drop: float, gained: float, margin: float, confidence: float) -> float:
    """Exact probability that the upper bound is within the margin, over all outcomes."""
    lost = gained + drop
    most = [int(count * p + 9 * math.sqrt(count * p) + 12) for p in (lost, gained)]
    b = np.arange(min(most[0], count) + 1)[:, None]
    c = np.arange(min(most[1], count) + 1)[None, :]
    rest = np.maximum(count - b - c, 0)
    log = gammaln(count + 1) - gammaln(b + 1) - gammaln(c + 1) - gammaln(rest + 1)
    log = log + b * math.log(lost) + rest * math.log(1 - lost - gained)
    log = log + (c * math.log(gained) if gained else np.where(c == 0, 0, -np.inf))
    probability = np.where(b + c <= count, np.exp(log), 0)
    _, high = paired_difference(b, c, count, confidence)
    return float((probability * (high <= margin)).sum())


@pytest.mark.parametrize("margin", [0.005, 0.01, 0.02, 0.05])
@pytest.mark.parametrize("gained", [0.0, 0.0005, 0.005, 0.02])
def test_no_discordance_lets_a_candidate_at_the_margin_through_too_often(
    margin: float, gained: float
) -> None:
    for count in (60, 150, 270, 300, 700, 1500):
        assert _acceptance(count, margin, gained, margin, 0.95) <= 0.0505


def test_other_confidences_hold_too() -> None:
    for confidence in (0.9, 0.99):
        for count in (250, 300, 500, 1500):
            for gained in (0.0, 0.005):
                wrong = _acceptance(count, MARGIN, gained, MARGIN, confidence)
                assert wrong <= 1.07 * (1 - confidence)


@pytest.mark.parametrize("flips", [0.005, 0.01, 0.02, 0.05, 0.10])
def test_simulated_releases_at_the_margin_and_at_equality(flips: float) -> None:
    rng = np.random.default_rng(1)
    releases = 2000
    count = required_examples(flips, MARGIN, 0.95)
    assert count is not None
    # never below the textbook's number, and close to it where many answers flip
    assert 6.18 * flips / MARGIN**2 <= count <= 6.18 * flips / MARGIN**2 + 400
    accepted = {}
    for drop in (0.0, MARGIN, 2 * MARGIN):
        flips = max(flips, drop)
        lost, gained = (flips + drop) / 2, (flips - drop) / 2
        cells = rng.multinomial(count, [lost, gained, 1 - lost - gained], releases)
        _, high = paired_difference(cells[:, 0], cells[:, 1], count, 0.95)
        accepted[drop] = float((high <= MARGIN).mean())
    noise = 3 * math.sqrt(0.05 * 0.95 / releases)
    assert accepted[MARGIN] <= 0.05 + noise
    assert accepted[2 * MARGIN] <= 0.005
    power_noise = 3 * math.sqrt(0.8 * 0.2 / releases)
    assert 0.8 - power_noise <= accepted[0.0] <= 0.9  # what the sample size was asked for


def test_agrees_with_the_published_interval() -> None:
    """Fagerland, Lydersen, Laake (2014): 1 and 7 discordant of 21 give −0.517 to −0.026."""
    plain = pytest.MonkeyPatch()
    with plain.context() as patch:
        patch.setattr(statistics, "CONTINUITY", 0.0)
        low, high = paired_difference(1, 7, 21, 0.975)
    assert float(low) == pytest.approx(-0.517, abs=5e-4)
    assert float(high) == pytest.approx(-0.026, abs=5e-4)


def test_swapping_the_models_mirrors_the_interval() -> None:
    rng = np.random.default_rng(2)
    lost, gained = rng.integers(0, 40, 50), rng.integers(0, 40, 50)
    low, high = paired_difference(lost, gained, 400, 0.95)
    mirrored_low, mirrored_high = paired_difference(gained, lost, 400, 0.95)
    np.testing.assert_allclose(low, -mirrored_high, atol=1e-12)
    np.testing.assert_allclose(high, -mirrored_low, atol=1e-12)
    assert (low < (lost - gained) / 400).all()
    assert (high > (lost - gained) / 400).all()


@pytest.mark.parametrize("count", [20, 100, 1000, 100_000])
def test_without_flips_the_bound_shrinks_like_three_over_n(count: int) -> None:
    low, high = paired_difference(0, 0, count, 0.95)
    assert 2.5 / count < float(high) < 3.6 / count
    assert float(low) == pytest.approx(-float(high))


def test_zero_flips_needed_is_the_smallest_count_that_passes() -> None:
    count = zero_flips_needed(MARGIN, 0.95)
    assert float(paired_difference(0, 0, count, 0.95)[1]) <= MARGIN
    assert float(paired_difference(0, 0, count - 1, 0.95)[1]) > MARGIN


def test_more_flips_or_a_drop_need_more_examples() -> None:
    few, many = (required_examples(flips, MARGIN, 0.95) for flips in (0.02, 0.10))
    assert few is not None
    assert many is not None
    assert many == pytest.approx(5 * few, rel=0.2)
    half = required_examples(0.02, MARGIN, 0.95, drop=MARGIN / 2)
    assert half is not None
    assert half == pytest.approx(4 * few, rel=0.2)
    assert required_examples(0.02, MARGIN, 0.95, drop=MARGIN) is None


def test_mcnemar_is_the_exact_binomial() -> None:
    assert mcnemar_p(0, 0) == 1
    assert mcnemar_p(5, 5) == 1
    assert mcnemar_p(0, 6) == pytest.approx(2 / 64)
    assert mcnemar_p(6, 0) == pytest.approx(2 / 64)
    assert mcnemar_p(2, 8) == pytest.approx(2 * (1 + 10 + 45) / 1024)


def _documents(rng: np.random.Generator, count: int, log_ratio: float) -> tuple[object, object]:
    """Documents of skewed lengths whose tokens lose `log_ratio` nats, more in some than others."""
    tokens = np.ceil(rng.lognormal(5, 1, count))
    lost = log_ratio + rng.normal(0, 0.02, count) + rng.normal(0, 1, count) / np.sqrt(tokens) / 4
    return lost * tokens, tokens


def test_perplexity_bounds_hold_on_skewed_documents() -> None:
    rng = np.random.default_rng(3)
    truth, releases = math.log(1.03), 600
    above = below = 0
    for release in range(releases):
        differences, tokens = _documents(rng, 60, truth)
        estimate, low, high = ratio_bounds(
            differences, tokens, confidence=0.95, resamples=400, seed=release
        )
        assert low <= estimate <= high
        above += low > truth
        below += high < truth
    allowed = releases * (0.05 + 3 * math.sqrt(0.05 * 0.95 / releases))
    assert above <= allowed
    assert below <= allowed
    assert below >= 0.01 * releases  # and it is no wider than it has to be


def test_resampling_takes_whole_documents() -> None:
    """Splitting each document in ten equal parts looks like more evidence, and must not arise."""
    rng = np.random.default_rng(4)
    differences, tokens = (np.asarray(a) for a in _documents(rng, 40, 0.02))
    _, low, high = ratio_bounds(differences, tokens, confidence=0.95, resamples=1000, seed=0)
    parts = np.repeat(differences / 10, 10), np.repeat(tokens / 10, 10)
    _, finer_low, finer_high = ratio_bounds(*parts, confidence=0.95, resamples=1000, seed=0)
    assert finer_high - finer_low < 0.5 * (high - low)


def test_ratio_bounds_mirror_repeat_and_refuse_nan() -> None:
    rng = np.random.default_rng(5)
    differences, tokens = (np.asarray(a) for a in _documents(rng, 50, 0.01))
    options = {"confidence": 0.95, "resamples": 2000, "seed": 7}
    estimate, low, high = ratio_bounds(differences, tokens, **options)
    assert ratio_bounds(differences, tokens, **options) == (estimate, low, high)
    mirrored = ratio_bounds(-differences, tokens, **options)
    np.testing.assert_allclose(mirrored, (-estimate, -high, -low), rtol=0.02)
    differences[3] = np.nan
    assert np.isnan(ratio_bounds(differences, tokens, **options)).all()
    assert np.isnan(ratio_bounds([], [], **options)).all()


def test_ratio_bounds_of_identical_models_are_exact_and_one_outlier_opens_them() -> None:
    tokens = np.full(30, 100.0)
    options = {"confidence": 0.95, "resamples": 500, "seed": 0}
    assert ratio_bounds(np.zeros(30), tokens, **options) == (0, 0, 0)
    differences = np.zeros(30)
    differences[0] = 5
    _, _, high = ratio_bounds(differences, tokens, **options)
    assert high == math.inf  # a third of the resamples never see it: nothing is known of its kind


def test_ratio_bounds_in_chunks_cover_all_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    differences, tokens = _documents(rng, 50, 0.01)
    whole = ratio_bounds(differences, tokens, confidence=0.95, resamples=1000, seed=0)
    monkeypatch.setattr(statistics, "CHUNK_CELLS", 50 * 70)
    chunked = ratio_bounds(differences, tokens, confidence=0.95, resamples=1000, seed=0)
    np.testing.assert_allclose(chunked, whole, rtol=1e-12)


def test_required_clusters_gives_the_power_it_says() -> None:
    rng = np.random.default_rng(8)
    limit = math.log(1.02)
    pilot = _documents(rng, 2000, 0.0)
    count = required_clusters(*pilot, limit, 0.95)
    assert count is not None
    passed = 0
    for release in range(200):
        sample = _documents(rng, count, 0.0)
        _, _, high = ratio_bounds(*sample, confidence=0.95, resamples=300, seed=release)
        passed += high <= limit
    assert 0.65 <= passed / 200 <= 0.92
    assert required_clusters(np.full(9, 3.0), np.ones(9), 3.0, 0.95) is None


def test_quantile_bounds_are_order_statistics_with_exact_coverage() -> None:
    assert values_for_quantile(0.95, 0.95) == 59
    values = np.arange(59.0)
    estimate, low, high = quantile_bounds(values, 0.95, 0.95)
    assert low < estimate < high == 58
    assert quantile_bounds(values[:58], 0.95, 0.95)[2] == math.inf
    assert np.isnan(quantile_bounds([1.0, math.nan], 0.95, 0.95)).all()
    rng = np.random.default_rng(11)
    bounds = [quantile_bounds(rng.random(200), 0.95, 0.95) for _ in range(800)]
    assert np.mean([high < 0.95 for _, _, high in bounds]) <= 0.05 + 0.025
    assert np.mean([low > 0.95 for _, low, _ in bounds]) <= 0.05 + 0.025
