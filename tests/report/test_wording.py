"""The sentence why, and numbers as people read them."""

from __future__ import annotations

import math

import pytest

from exporter.budget import Budgets
from exporter.report.rows import budget_rows
from exporter.report.wording import budget_used, explain, limit, measured, number, plain
from tests.report import samples


def test_a_pass_names_the_tightest_budget_by_the_end_that_decides() -> None:
    said = explain(samples.passing().judgements)
    assert "all 6 budgets" in said
    # 0.362 of 0.6 is a larger share than any other
    assert "latency ratio (host)" in said
    assert "0.362×" in said


def test_a_failure_says_which_by_how_much_and_what_would_pass() -> None:
    said = explain(samples.failing().judgements)
    assert "latency ratio (host) is 0.810×, allowed ≤ 0.6×" in said
    assert "latency_ratio = 0.83" in said
    assert "inconclusive" in said


@pytest.mark.parametrize("high", [0.8301, 0.83, 0.8349, 0.7])
def test_the_offered_limit_would_pass(high: float) -> None:
    figures = {"latency_ratio": (0.69, 0.68, high, 10.0, 6.9, "ms")}
    said = explain(samples.report_of(figures).judgements)
    offered = float(said.split("latency_ratio = ")[1].split(" ")[0])
    assert high <= offered <= high * 1.01
    Budgets(latency_ratio=offered)  # a profile accepts it


def test_slower_than_the_original_has_no_remedy() -> None:
    figures = {"latency_ratio": (1.2, 1.1, 1.3, 10.0, 12.0, "ms")}
    said = explain(samples.report_of(figures).judgements)
    assert "no profile allows" in said


def test_an_open_verdict_gives_the_judge_s_reason() -> None:
    report = samples.inconclusive()
    assert report.verdict == "INCONCLUSIVE"
    assert "Too little evidence for accuracy drop" in report.summary
    assert "between -0.4 and 1.8" in report.summary


def test_nothing_judged_shows_nothing() -> None:
    assert "Nothing was judged" in explain([])


def test_used_share_of_each_kind_of_budget() -> None:
    def used(metric: str, bound: float, value: float | None) -> float | None:
        return budget_used({"metric": metric, "limit": bound}, value)

    assert used("latency_ratio", 0.5, 0.25) == pytest.approx(0.5)
    assert used("perplexity_ratio", 1.02, 1.01) == pytest.approx(0.5)
    assert used("embedding_cosine", 0.9, 0.95) == pytest.approx(0.5)
    assert used("embedding_cosine", 0.9, 0.85) == pytest.approx(1.5)
    assert used("accuracy_drop_points", 1.0, -0.5) == pytest.approx(-0.5)
    assert used("latency_ratio", 0.5, None) is None
    assert used("latency_ratio", 0.5, math.nan) is None


def test_cosine_limits_point_upwards() -> None:
    assert limit("embedding_cosine", 0.95) == "≥ 0.95"
    figures = {"embedding_cosine": (0.98, 0.97, 0.985, 1.0, 0.98, "")}
    row = budget_rows(samples.report_of(figures, task="feature-extraction"))[0]
    assert (row.verdict, row.measured, row.interval) == ("PASS", "0.9800", "0.9700 to 0.9850")
    assert row.used_low is not None
    assert row.used_high is not None
    assert row.used_low < row.used_high == pytest.approx(0.6)


def test_numbers() -> None:
    assert number(12345.678) == "12,346"
    assert number(0.01234) == "0.0123"
    assert number(3.4e-7) == "3.4e−7"
    assert number(-2.5) == "−2.50"
    assert number(None) == number(math.nan) == number(math.inf) == number("7") == "–"
    assert measured("accuracy_drop_points", 0.314) == "0.31 points"
    assert measured("latency_ratio", None) == "–"


def test_plain_text_is_one_harmless_line() -> None:
    assert plain("a\nb\tc  d") == "a b c d"
    assert plain("\x1b[31mred\x07") == "[31mred"
    assert plain("x\u202ey\u200bz\ud800") == "xyz"
    assert plain("naïve 模型 🙂") == "naïve 模型 🙂"


def test_a_veto_is_no_worst_case_that_was_ruled_out() -> None:
    """Its interval may reach beyond the limit while it passes: the headline must not say so."""
    veto = {
        "metric": "worst_slice_drop_points",
        "title": "worst slice",
        "verdict": "PASS",
        "measured": 0.5,
        "low": -9.0,
        "high": 11.4,
        "limit": 8.0,
        "margin": 7.5,
    }
    said = explain([*samples.passing().judgements, veto])
    assert "worst slice" not in said
    assert "latency ratio (host)" in said
    assert explain([veto]) == "Within the one budget."
    failed = {**veto, "verdict": "FAIL", "measured": 20.0, "low": 9.0, "high": 30.0}
    assert "worst_slice_drop_points = 20" in explain([failed])


def test_what_is_slower_is_called_slower() -> None:
    latency = {"metric": "latency_ratio", "title": "latency ratio", "verdict": "FAIL", "limit": 0.6}
    slower = {**latency, "measured": 1.4, "low": 1.25, "high": 1.57}
    assert "It is slower than the original" in explain([slower])
    maybe = {**latency, "measured": 1.02, "low": 0.98, "high": 1.06}
    assert "It may be slower than the original" in explain([maybe])
