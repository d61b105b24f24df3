"""Memory: the peak of a process that runs one session of the model."""

from __future__ import annotations

from collections.abc import Sequence

from exporter.budget import Budget
from exporter.devices.timing import Memory
from exporter.judge.verdict import Judgement, judged


def judge_memory(reference: Memory, candidate: Sequence[Memory], budget: Budget) -> Judgement:
    """Judge the candidate's highest peak.

    Args:
        candidate: one an independent process; repeats agree to about 0.1 MiB.
    """
    peaks = [memory.peak_mib for memory in candidate]
    measured = max(peaks)
    baseline = candidate[0].baseline_mib
    before = "" if baseline is None else f", {baseline:.0f} MiB of it before the model was loaded"
    return judged(
        budget,
        measured=measured,
        low=min(peaks),
        high=measured,
        reason=f"Peak of a fresh process on this machine: {measured:.0f} MiB{before}.",
        reference=reference.peak_mib,
        candidate=measured,
        value_unit="MiB",
        count=len(peaks),
    )
