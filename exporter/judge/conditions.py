"""What a reader should know about the machine that the times come from."""

from __future__ import annotations

from exporter.judge.latency import reference_drift
from exporter.judge.measure import Measurements

# Beyond these the pairs still compare fairly, but the milliseconds are those of a busy machine.
DRIFT = 0.1
CLOCK_CHANGE = 0.05


def remarks(measurements: Measurements) -> list[str]:
    """A sentence for each of load, clock and drift that was beyond what a quiet machine shows."""
    seen = measurements.conditions
    cores = int(measurements.host.get("cores") or 1)
    found = []
    loads = [load for load in (seen.load_before, seen.load_after) if load is not None]
    if loads and max(loads) > cores:
        found.append(
            f"The machine was busy while latency was measured: load {max(loads):.1f} on {cores} "
            f"core{'s' * (cores > 1)}. Pairs of runs compare fairly; milliseconds may be too high."
        )
    if seen.mhz_before and seen.mhz_after:
        change = seen.mhz_after / seen.mhz_before - 1
        if abs(change) > CLOCK_CHANGE:
            found.append(
                f"The cores' clock went from {seen.mhz_before:,.0f} to {seen.mhz_after:,.0f} MHz "
                "while latency was measured."
            )
    drift = reference_drift(measurements.times_ms["reference"], measurements.workload)
    if drift is not None and abs(drift) > DRIFT:
        found.append(
            f"The reference became {abs(drift):.0%} {'slower' if drift > 0 else 'faster'} from the "
            "first third of the rounds to the last: the machine's speed changed meanwhile."
        )
    return found
