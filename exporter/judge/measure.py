"""Measure reference and candidate side by side on this machine: time, bytes, memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from exporter.budget import BUDGET_KINDS, Budget
from exporter.devices.conditions import Conditions
from exporter.devices.host import host_description
from exporter.devices.timing import Memory, Times, Timing, peak_memory, time_models
from exporter.errors import ArtifactError
from exporter.graph.model import OnnxModel
from exporter.judge.latency import (
    PhaseLatency,
    answer_ms,
    judge_latency,
    phase_latencies,
    reference_drift,
)
from exporter.judge.sequential import LOOKS, OPENINGS, look_confidence, next_look
from exporter.judge.size import Size, measure_size
from exporter.judge.verdict import INCONCLUSIVE, Measurement, overall
from exporter.models.examples import Feeds
from exporter.progress import Progress, Silent
from exporter.target import Evidence, Target, Workload

MEMORY_REPEATS = 2
# Workloads of a few milliseconds get more rounds than asked for, until their runs add up to this
# much time, but no more than this many times as many.
SECONDS_OF_ROUNDS = 2.0
EXTRA_ROUNDS = 8


@dataclass(frozen=True)
class Measurements:
    """All that was measured of a candidate and its reference on one machine.

    Attributes:
        host: the machine, as `host_description` tells it.
        workload: the shapes that ran, which a model's context may have cut.
        threads: of the session.
        times_ms: "reference" and "candidate" -> phase -> ms, one a round, aligned.
        reference_size: bytes of the reference.
        candidate_size: bytes of the candidate.
        reference_memory: peak of a process that runs the reference.
        candidate_memory: peaks of the candidate, one an independent process.
        looks: rounds at each look at the times, the last one being all; () when their number was
            fixed beforehand.
        blocks: rounds of each opening of the models; () when they were opened once.
        conditions: how busy the machine was meanwhile.
    """

    host: dict[str, Any]
    workload: Workload
    threads: int
    times_ms: Times
    reference_size: Size
    candidate_size: Size
    reference_memory: Memory
    candidate_memory: tuple[Memory, ...]
    looks: tuple[int, ...] = ()
    blocks: tuple[int, ...] = ()
    conditions: Conditions = field(default_factory=Conditions)

    def phases(self, evidence: Evidence | None = None) -> list[PhaseLatency]:
        """Latency of the whole workload ("answer") first, then of each phase, at the last look."""
        return phase_latencies(
            self.times_ms["reference"],
            self.times_ms["candidate"],
            self.workload,
            look_confidence((evidence or Evidence()).confidence, len(self.looks)),
            self.blocks,
        )

    @property
    def latency_ratio(self) -> Measurement:
        """Latency of the whole workload over the reference's, with 95 % one-sided bounds."""
        answer = self.phases()[0]
        return Measurement(
            answer.ratio,
            "×",
            answer.ratio_low,
            answer.ratio_high,
            answer.rounds,
            str(self.host.get("cpu", "this machine")),
        )

    @property
    def environment(self) -> dict[str, Any]:
        """The machine and what went on around the timing, as the reports show it."""
        c = self.conditions
        drift = reference_drift(self.times_ms["reference"], self.workload)
        return {
            **{key: value for key, value in self.host.items() if key != "load_1min"},
            "threads": self.threads,
            "load_1min": _both(c.load_before, c.load_after),
            "clock_mhz": _both(c.mhz_before, c.mhz_after),
            "reference_drift": None if drift is None else round(drift, 4),
        }

    @property
    def answer_times(self) -> dict[str, list[float]]:
        """Whole workload of "reference" and "candidate", ms a round, to 4 significant digits."""
        return {
            name: [
                float(f"{ms:.4g}")
                for ms in answer_ms(self.times_ms[name], self.workload)
                if math.isfinite(ms)
            ]
            for name in ("reference", "candidate")
        }

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, every single time included."""
        drift = reference_drift(self.times_ms["reference"], self.workload)
        ready = {**asdict(self), "workload": self.workload.model_dump()}
        return {**ready, "reference_drift": drift}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measurements:
        """The measurements that `to_json` made.

        Raises:
            ArtifactError: the data is malformed.
        """
        try:
            found = cls(
                host=dict(data["host"]),
                workload=Workload(**data["workload"]),
                threads=int(data["threads"]),
                times_ms={
                    name: {phase: [float(ms) for ms in all_ms] for phase, all_ms in phases.items()}
                    for name, phases in data["times_ms"].items()
                },
                reference_size=Size(**data["reference_size"]),
                candidate_size=Size(**data["candidate_size"]),
                reference_memory=Memory(**data["reference_memory"]),
                candidate_memory=tuple(Memory(**m) for m in data["candidate_memory"]),
                looks=tuple(int(n) for n in data.get("looks", ())),
                blocks=tuple(int(n) for n in data.get("blocks", ())),
                conditions=Conditions(**data.get("conditions", {})),
            )
            _consistent(found)
            return found
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(
                "measurements", "must be complete", got=str(error), remedy="measure again."
            ) from error


def _both(before: float | None, after: float | None) -> dict[str, float | None] | None:
    return None if before is None and after is None else {"before": before, "after": after}


def _consistent(measurements: Measurements) -> None:
    """Every phase has as many rounds as the looks and blocks say.

    Raises:
        ValueError: it has not.
    """
    counts = {len(ms) for phases in measurements.times_ms.values() for ms in phases.values()}
    looks, blocks = measurements.looks, measurements.blocks
    if len(counts) != 1:
        raise ValueError(f"phases of {sorted(counts)} rounds")
    (rounds,) = counts
    if looks and not (looks[-1] == rounds and list(looks) == sorted({*looks}) and looks[0] > 0):
        raise ValueError(f"looks at {list(looks)} of {rounds} rounds")
    if len(looks) > LOOKS:
        raise ValueError(f"{len(looks)} looks, which is more than {LOOKS}")
    if blocks and (sum(blocks) != rounds or min(blocks) < 1):
        raise ValueError(f"blocks of {sum(blocks)} in {rounds} rounds")


def measure(
    reference: OnnxModel,
    candidate: OnnxModel,
    feeds: Feeds,
    workload: Workload,
    *,
    threads: int,
    rounds: int,
    until: Target | None = None,
    openings: int | None = None,
    seed: int = 0,
    seconds: float = SECONDS_OF_ROUNDS,
    progress: Progress | None = None,
) -> Measurements:
    """Time both models interleaved, weigh them, and run each alone for its memory.

    Args:
        feeds: one batch of the workload; language models take `input_ids` as the prompt.
        rounds: of the interleaved timing, at least.
        until: go on timing until this target's latency budgets are decided, its time is over, or
            the last look was taken; None takes `rounds`, which is enough to compare candidates.
        openings: times that the models are opened anew on the way to each goal; None takes
            OPENINGS with `until`, else 1.
        seconds: short workloads go on for this long, up to eight times the rounds.

    Raises:
        DeviceError: a model does not load or run.
    """
    shown = progress or Silent()
    host = host_description()
    looks: list[int] = []
    openings = openings or (1 if until is None else OPENINGS)

    def go_on(timing: Timing) -> int:
        done = sum(timing.blocks)
        if not looks and done < EXTRA_ROUNDS * rounds and _busy_seconds(timing) < seconds:
            return 2 * done
        if until is None:
            return done
        looks.append(done)
        open_ = _undecided(timing, until, host, len(looks))
        return (next_look(done, len(looks)) if open_ else None) or done

    timing = time_models(
        {"reference": reference, "candidate": candidate},
        feeds,
        workload,
        threads=threads,
        rounds=rounds,
        openings=openings,
        limit_seconds=None if until is None else until.evidence.latency_seconds,
        go_on=go_on,
        seed=seed,
        progress=shown,
    )
    done = sum(timing.blocks)
    if until is not None and done not in looks:
        looks.append(done)  # the time was over on the way to this look
    with shown.stage("weigh and measure memory", 3 + MEMORY_REPEATS) as bar:
        sizes = []
        for model in (reference, candidate):
            sizes.append(measure_size(model))
            bar.advance()
        memories = []
        for model in (reference, *[candidate] * MEMORY_REPEATS):
            memories.append(peak_memory(model, feeds, workload, threads=threads))
            bar.advance()
    return Measurements(
        host,
        timing.workload,
        threads,
        timing.times_ms,
        sizes[0],
        sizes[1],
        memories[0],
        tuple(memories[1:]),
        tuple(looks),
        timing.blocks if openings > 1 else (),
        timing.conditions,
    )


def _busy_seconds(timing: Timing) -> float:
    """Time that all timed runs took."""
    return sum(float(answer_ms(p, timing.workload).sum()) for p in timing.times_ms.values()) / 1e3


def _undecided(timing: Timing, target: Target, host: Mapping[str, Any], looks: int) -> bool:
    """True when more rounds could still change what the latency budgets come to."""
    found = [
        judgement
        for metric in ("latency_ratio", "latency_p95_ms")
        if (limit := getattr(target.budgets, metric)) is not None
        and (
            judgement := judge_latency(
                Budget(BUDGET_KINDS[metric], limit),
                target,
                host,
                timing.times_ms,
                timing.workload,
                blocks=timing.blocks,
                looks=looks,
            )
        )
        is not None
    ]
    return bool(found) and overall(found) is INCONCLUSIVE
