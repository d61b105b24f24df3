"""Verdicts: intervals against limits, NaN and absence never pass, JSON round trips."""

from __future__ import annotations

import itertools
import json
import math

import pytest

from exporter.budget import BUDGET_KINDS, Budget
from exporter.errors import ArtifactError
from exporter.judge.verdict import (
    FAIL,
    INCONCLUSIVE,
    PASS,
    Judgement,
    Measurement,
    Verdict,
    claim,
    decide,
    judged,
    overall,
)

BELOW = Budget(BUDGET_KINDS["latency_ratio"], 0.6)
ABOVE = Budget(BUDGET_KINDS["embedding_cosine"], 0.95)


@pytest.mark.parametrize(
    ("low", "high", "below", "above"),
    [
        (1.0, 2.0, PASS, FAIL),
        (1.0, 3.0, PASS, INCONCLUSIVE),
        (3.0, 4.0, INCONCLUSIVE, PASS),
        (2.0, 4.0, INCONCLUSIVE, INCONCLUSIVE),
        (3.1, 4.0, FAIL, PASS),
        (-math.inf, 2.0, PASS, FAIL),
        (3.5, math.inf, FAIL, PASS),
        (-math.inf, math.inf, INCONCLUSIVE, INCONCLUSIVE),
    ],
)
def test_an_interval_decides(low: float, high: float, below: Verdict, above: Verdict) -> None:
    assert decide("below", 3.0, low, high) is below
    assert decide("above", 3.0, low, high) is above


def test_nothing_that_is_not_a_number_passes() -> None:
    odd = (math.nan, math.inf, -math.inf)
    for measured, low, high in itertools.product(odd, repeat=3):
        for budget in (BELOW, ABOVE):
            judgement = judged(budget, measured=measured, low=low, high=high, reason="")
            assert judgement.verdict is not PASS
            json.dumps(judgement.to_json(), allow_nan=False)
    for measured in (None, math.nan):
        with pytest.raises(ValueError, match="cannot pass"):
            Judgement("m", "t", "", None, None, measured, 0, 1, 2, None, PASS, "")


def test_margin_is_the_room_to_the_limit_on_the_good_side() -> None:
    assert judged(BELOW, measured=0.5, low=0.4, high=0.55, reason="").margin == pytest.approx(0.1)
    assert judged(ABOVE, measured=0.94, low=0.9, high=0.949, reason="").margin == pytest.approx(
        -0.01
    )


def test_overall_takes_the_worst_and_nothing_judged_is_no_pass() -> None:
    def of(*verdicts: Verdict) -> Verdict:
        values = {PASS: (0.1, 0.2), FAIL: (0.8, 0.9), INCONCLUSIVE: (0.5, 0.7)}
        return overall(
            judged(
                BELOW, measured=sum(values[v]) / 2, low=values[v][0], high=values[v][1], reason=""
            )
            for v in verdicts
        )

    assert of(PASS, PASS) is PASS
    assert of(PASS, INCONCLUSIVE) is INCONCLUSIVE
    assert of(INCONCLUSIVE, FAIL, PASS) is FAIL
    assert overall([]) is INCONCLUSIVE
    assert [v.exit_code for v in (PASS, FAIL, INCONCLUSIVE)] == [0, 1, 3]


def test_json_round_trips() -> None:
    judgement = judged(BELOW, measured=0.5, low=0.4, high=0.7, reason="why", count=7, needed=90)
    assert Judgement.from_json(json.loads(json.dumps(judgement.to_json()))) == judgement
    measurement = Measurement(1.5, "ms", -math.inf, 2.0, 30, "host")
    text = json.dumps(measurement.to_json(), allow_nan=False)
    assert Measurement.from_json(json.loads(text)) == measurement


@pytest.mark.parametrize(
    "change", [{"verdict": "FINE"}, {"verdict": "PASS", "measured": None}, {"metric": ...}]
)
def test_a_tampered_judgement_is_refused(change: dict[str, object]) -> None:
    data = judged(BELOW, measured=0.5, low=0.4, high=0.7, reason="why").to_json() | change
    if change.get("metric") is ...:
        del data["metric"]
    with pytest.raises(ArtifactError):
        Judgement.from_json(data)


def test_claims_name_the_bound_that_decides() -> None:
    assert claim(BELOW, PASS, 0.4, 0.5) == "the latency ratio (host) is at most 0.5 ×, limit 0.6"
    assert "at least 0.7" in claim(BELOW, FAIL, 0.7, 0.8)
    assert "at least 0.96" in claim(ABOVE, PASS, 0.96, 0.98)
    assert "at most 0.91" in claim(ABOVE, FAIL, 0.9, 0.91)
    assert "between 0.5 and 0.7" in claim(BELOW, INCONCLUSIVE, 0.5, 0.7)
