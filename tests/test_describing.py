"""What the profile sets no budget for is observed all the same."""

from __future__ import annotations

import pytest

from exporter.describing import observed
from exporter.judge.divergence import divergences
from tests import chain
from tests.judge.test_divergence import classes


def test_every_divergence_without_a_budget_is_observed() -> None:
    before, after = classes(400, flipped=40, kl=0.02)
    target = chain.quick_target(accuracy_drop_points=30)
    flips, mean, tail = observed(before, after, target)
    assert flips.title == "flips"
    assert flips.candidate == pytest.approx(0.1)
    assert flips.note == "The profile sets no flip_ratio (40 of 400 answers differ)."
    assert mean.candidate == pytest.approx(float(after.values["kl"].mean()))
    figures = divergences(before, after, target.evidence)
    assert [o.candidate for o in (flips, mean, tail)] == [f.measured for f in figures]
    assert {o.unit for o in (mean, tail)} == {"nats"}


def test_what_has_a_budget_is_judged_and_not_observed() -> None:
    before, after = classes(400)
    target = chain.quick_target(flip_ratio=0.1, kl_p999_nats=1.0)
    (mean,) = observed(before, after, target)
    assert "kl_mean_nats" in mean.note
    full = chain.quick_target(flip_ratio=0.1, kl_p999_nats=1.0, kl_mean_nats=0.1)
    assert observed(before, after, full) == ()
