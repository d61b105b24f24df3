"""Measure reference and candidate side by side on this machine: time, bytes, memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from exporter.devices.local import Memory, Times, host_description, peak_memory, time_models
from exporter.errors import ArtifactError
from exporter.graph.model import OnnxModel
from exporter.judge.latency import PhaseLatency, phase_latencies
from exporter.judge.size import Size, measure_size
from exporter.judge.verdict import Measurement
from exporter.models.examples import Feeds
from exporter.progress import Progress, Silent
from exporter.target import Evidence, Workload

MEMORY_REPEATS = 2
# Workloads of a few milliseconds get more rounds than asked for, until this much time is used.
SECONDS_OF_ROUNDS = 2.0


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
    """

    host: dict[str, Any]
    workload: Workload
    threads: int
    times_ms: Times
    reference_size: Size
    candidate_size: Size
    reference_memory: Memory
    candidate_memory: tuple[Memory, ...]

    def phases(self, evidence: Evidence | None = None) -> list[PhaseLatency]:
        """Latency of the whole workload ("answer") first, then of each phase."""
        return phase_latencies(
            self.times_ms["reference"],
            self.times_ms["candidate"],
            self.workload,
            evidence or Evidence(),
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

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, every single time included."""
        return {**asdict(self), "workload": self.workload.model_dump()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measurements:
        """The measurements that `to_json` made.

        Raises:
            ArtifactError: the data is malformed.
        """
        try:
            return cls(
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
            )
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(
                "measurements", "must be complete", got=str(error), remedy="measure again."
            ) from error


def measure(
    reference: OnnxModel,
    candidate: OnnxModel,
    feeds: Feeds,
    workload: Workload,
    *,
    threads: int,
    rounds: int,
    seed: int = 0,
    seconds: float = SECONDS_OF_ROUNDS,
    progress: Progress | None = None,
) -> Measurements:
    """Time both models interleaved, weigh them, and run each alone for its memory.

    Args:
        feeds: one batch of the workload; language models take `input_ids` as the prompt.
        rounds: of the interleaved timing, at least.
        seconds: short workloads go on for this long, up to ten times the rounds.

    Raises:
        DeviceError: a model does not load or run.
    """
    shown = progress or Silent()
    timing = time_models(
        {"reference": reference, "candidate": candidate},
        feeds,
        workload,
        threads=threads,
        rounds=rounds,
        seed=seed,
        seconds=seconds,
        progress=shown,
    )
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
        host_description(),
        timing.workload,
        threads,
        timing.times_ms,
        sizes[0],
        sizes[1],
        memories[0],
        tuple(memories[1:]),
    )
