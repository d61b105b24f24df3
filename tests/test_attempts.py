"""What development data decides: everything but a latency that few rounds left open."""

from __future__ import annotations

from exporter.attempts import _decidable
from exporter.budget import BUDGET_KINDS, Budget
from exporter.judge.verdict import FAIL, INCONCLUSIVE, PASS, Judgement, Verdict, judged


def judgement(metric: str, limit: float, measured: float, verdict: Verdict) -> Judgement:
    budget = Budget(BUDGET_KINDS[metric], limit)
    return judged(
        budget, measured=measured, low=measured, high=measured, reason="", verdict=verdict
    )


def test_only_an_open_latency_that_looks_good_is_left_to_the_final_timing() -> None:
    good = judgement("latency_ratio", 0.6, 0.5, INCONCLUSIVE)
    tail = judgement("latency_p95_ms", 250, 90, INCONCLUSIVE)
    bad = judgement("latency_ratio", 0.6, 0.7, INCONCLUSIVE)
    lost = judgement("latency_ratio", 0.6, 0.7, FAIL)
    thin = judgement("accuracy_drop_points", 1.0, 0.5, INCONCLUSIVE)
    size = judgement("disk_size_ratio", 0.5, 0.3, PASS)
    assert _decidable((good, tail, thin, size)) == (thin, size)
    assert _decidable((bad, size)) == (bad, size)
    assert _decidable((lost, size)) == (lost, size)
