"""Which of several candidates is taken."""

from __future__ import annotations

from dataclasses import replace

from exporter.attempts import Attempt
from exporter.choose import best
from exporter.judge.reading import Cost, Reading
from exporter.recipe import Candidate


def _attempt(name: str, host: float, instructions: float | None) -> Attempt:
    reading = Reading(
        "arm64:cortex-a53",
        False,
        "ran",
        unit="instructions",
        reference=Cost(answer=100.0),
        candidate=Cost(answer=None if instructions is None else 100 * instructions),
    )
    candidate = Candidate(name=name, tasks=("text-generation",), quantization="none")
    attempt = Attempt(candidate, "judged", readings=() if instructions is None else (reading,))
    object.__setattr__(attempt, "measurements", _Measured(host))
    return attempt


class _Measured:
    def __init__(self, ratio: float) -> None:
        self.latency_ratio = Cost()
        object.__setattr__(self, "latency_ratio", type("R", (), {"value": ratio}))


def test_the_targets_instructions_choose_not_this_machines_time() -> None:
    """int8 is fast here and gains little on a Cortex-A53, where less work is what pays."""
    int8, pruned = _attempt("int8", 0.3, 0.84), _attempt("pruned", 0.5, 0.55)
    assert best([int8, pruned]) is pruned
    int8, pruned = _attempt("int8", 0.3, None), _attempt("pruned", 0.5, None)
    assert best([int8, pruned]) is int8


def test_what_costs_most_on_one_cpu_of_the_profile_is_not_cheap() -> None:
    """Of several CPUs the one on which a candidate gains least ranks it."""
    there = _attempt("int8", 0.3, 0.4)
    worse = replace(there.readings[0], device="arm64:cortex-a76", candidate=Cost(answer=90.0))
    uneven = replace(there, readings=(there.readings[0], worse))
    even = _attempt("pruned", 0.5, 0.7)
    assert best([uneven, even]) is even
