"""The drawing of round times: places, quantiles, and the same in words."""

from __future__ import annotations

import math
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from exporter.report.charts import Frame
from exporter.report.distributions import DOTS, NARROW, WIDE, distributions
from exporter.report.document import Report
from exporter.report.html import to_html
from tests.report import samples

FRAMES = pytest.mark.parametrize("frame", [WIDE, NARROW], ids=["wide", "narrow"])


def _report(reference: list[float], candidate: list[float]) -> Report:
    return replace(samples.passing(), times={"reference": reference, "candidate": candidate})


@FRAMES
def test_places_are_in_proportion_to_time_from_zero(frame: Frame) -> None:
    drawn = distributions(_report([40.0] * 9 + [44.0], [10.0] * 9 + [20.0]), frame)
    assert drawn is not None
    reference, candidate = drawn.bands
    width = reference.median - frame.left
    assert candidate.median - frame.left == pytest.approx(width / 4, abs=0.2)
    assert drawn.ticks[0].place == frame.left
    assert drawn.ticks[0].label == "0"
    slow = max(x for x, _ in candidate.dots)
    assert slow - frame.left == pytest.approx(width / 2, abs=0.2)
    # the limit is 0.6 of the reference's median
    assert drawn.limit is not None
    assert drawn.limit - frame.left == pytest.approx(0.6 * width, abs=0.2)
    assert reference.median_label == "median 40.0 ms"


@FRAMES
def test_every_round_is_a_dot_inside_its_band(frame: Frame) -> None:
    drawn = distributions(samples.passing(), frame)
    assert drawn is not None
    assert not drawn.thinned
    for band in drawn.bands:
        assert len(band.dots) + band.beyond == 57
        assert all(frame.left <= x <= frame.right for x, _ in band.dots)
        assert all(band.top <= y <= band.bottom for _, y in band.dots)
    first, second = drawn.bands
    assert first.bottom < second.top
    assert second.bottom < frame.bottom


def test_one_slow_round_does_not_squeeze_the_others() -> None:
    drawn = distributions(_report([10.0] * 40 + [5000.0], [8.0] * 41), WIDE)
    assert drawn is not None
    reference, candidate = drawn.bands
    assert (reference.beyond, candidate.beyond) == (1, 0)
    assert reference.median - WIDE.left > 0.5 * (WIDE.right - WIDE.left)
    assert "slowest 5,000 ms" in drawn.text
    assert "1 slower" in to_html(_report([10.0] * 40 + [5000.0], [8.0] * 41))


def test_many_rounds_are_drawn_by_their_quantiles() -> None:
    rng = np.random.default_rng(0)
    slow, fast = rng.lognormal(3, 0.1, 5000), rng.lognormal(2, 0.1, 5000)
    drawn = distributions(_report(list(slow), list(fast)), WIDE)
    assert drawn is not None
    assert drawn.thinned
    assert drawn.rounds == 5000
    for band, values in zip(drawn.bands, (slow, fast), strict=True):
        assert len(band.dots) == DOTS
        left, right = (WIDE.left, band.median)
        per_ms = (right - left) / np.median(values)
        for share in (0.1, 0.5, 0.9):
            shown = np.quantile([x for x, _ in band.dots], share)
            assert shown == pytest.approx(left + per_ms * np.quantile(values, share), abs=2)
    assert "a dot stands for several of 5,000 rounds" in to_html(_report(list(slow), list(fast)))


def test_the_words_say_what_is_drawn() -> None:
    report = samples.passing()
    drawn = distributions(report, WIDE)
    assert drawn is not None
    median = float(np.median(report.times["candidate"]))
    assert f"Candidate: 57 rounds, median {median:.1f} ms" in drawn.text
    assert "Allowed is 0.6× the reference" in drawn.text
    html = to_html(report)
    pictures = [part for part in html.split("<svg") if part.lstrip().startswith('class="times')]
    assert len(pictures) == 2
    for picture in pictures:
        svg = ElementTree.fromstring("<svg" + picture[: picture.index("</svg>") + 6])
        assert drawn.text in str(svg.get("aria-label"))
        assert svg.get("role") == "img"
        assert len(svg.findall(".//circle")) == 56 + 57


def test_without_times_there_is_no_drawing() -> None:
    for times in ({}, {"reference": [1.0, 2.0]}, {"reference": [1.0], "candidate": [math.nan]}):
        report = replace(samples.passing(), times=times)
        assert distributions(report, WIDE) is None
        assert 'class="times' not in to_html(report)


def test_seconds_are_shown_as_seconds_and_a_budget_is_not_needed() -> None:
    report = replace(_report([20_000.0] * 5, [15_000.0] * 5), judgements=())
    drawn = distributions(report, NARROW)
    assert drawn is not None
    assert drawn.unit == "s"
    assert drawn.bands[0].median_label == "median 20.0 s"
    assert drawn.limit is None
    assert "limit" not in drawn.text


def test_times_survive_the_json_and_may_be_missing_from_older_reports() -> None:
    report = samples.passing()
    data = report.to_json()
    assert Report.from_json(data) == report
    del data["times"]
    assert Report.from_json(data).times == {}
