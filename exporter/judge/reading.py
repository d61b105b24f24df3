"""Reading: what one device told of reference and candidate, as it ships with the evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from exporter.devices.device import CostUnit
from exporter.errors import ArtifactError
from exporter.target import Target

Status = Literal["ran", "failed", "unfinished", "missing"]
MAX_READINGS = 100


@dataclass(frozen=True)
class Agreement:
    """How near the candidate's outputs are to the float32 reference's.

    Attributes:
        decisions: answers, or next tokens, that were compared.
        flips: of them, whose likeliest answer differs; None where nothing is chosen (embeddings).
        top_k: share of the five likeliest answers that are among the reference's five; None as
            for `flips`.
        cosine: mean over the outputs' last axis; what is not a number counts as 0.
        scores: the task's own figures, such as `accuracy`, on the same examples.
    """

    decisions: int
    flips: int | None
    top_k: float | None
    cosine: float
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def flip_ratio(self) -> float | None:
        """Share of decisions that differ."""
        return None if self.flips is None else self.flips / self.decisions


@dataclass(frozen=True)
class Cost:
    """What running one model's workload cost on a device.

    Attributes:
        answer: mean cost of the whole workload, in the device's unit; None: not told.
        phases: "run", or "prefill" and "decode" (a token) -> mean cost.
        spread: largest over smallest repeat of any phase, less 1.
        classes: class of instructions -> count for the whole workload.
        load: of opening the model.
        heap_mib: peak of the C heap; peak_mib: peak resident memory of the process.
    """

    answer: float | None = None
    phases: dict[str, float] = field(default_factory=dict)
    spread: float | None = None
    classes: dict[str, float] = field(default_factory=dict)
    load: float | None = None
    heap_mib: float | None = None
    peak_mib: float | None = None


@dataclass(frozen=True)
class Reading:
    """One device, asked once.

    Attributes:
        device: its name, such as `arm64:cortex-a76`.
        required: as the profile says.
        status: "ran"; "failed": the candidate does not run there; "unfinished": the device did
            not come to an end, which says nothing of the candidate; "missing": it is not usable.
        reason: of anything but "ran".
        unit: of costs; None: it tells none.
        examples: development examples that the candidate answered there.
        float_difference: largest difference of the reference's outputs there and here, over the
            RMS of those here where that is more than 1; None where it did not run there.
        float_reason: why it did not.
        here, there: the candidate against the reference's outputs here.
        same_tokens: share of greedily written tokens that are those written here.
        smallest_mib: "candidate" -> smallest memory of a board on which it ran, None where it did
            not run at any size tried; None on devices without a limit.
        features: of its CPU, in a profile's words.
        times_ms: on real hardware, "reference" and "candidate" -> phase -> ms, one a round; both
            ran once a round, in turns.
        decode_tokens: that a language model wrote each time.
        ratio_low, ratio_high: confidence bounds of the ratio of those times.
        facts: what else it told of itself.
    """

    device: str
    required: bool
    status: Status
    title: str = ""
    reason: str = ""
    isa: str = ""
    emulated: bool = False
    unit: CostUnit | None = None
    runtime: str = ""
    examples: int = 0
    float_difference: float | None = None
    float_reason: str = ""
    here: Agreement | None = None
    there: Agreement | None = None
    same_tokens: float | None = None
    reference: Cost = field(default_factory=Cost)
    candidate: Cost = field(default_factory=Cost)
    smallest_mib: dict[str, int | None] | None = None
    features: tuple[str, ...] = ()
    times_ms: dict[str, dict[str, list[float]]] | None = None
    decode_tokens: int = 0
    ratio_low: float | None = None
    ratio_high: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def cost_ratio(self) -> float | None:
        """Cost of the candidate's whole workload over the reference's."""
        before, after = self.reference.answer, self.candidate.answer
        return after / before if before and after is not None else None

    @property
    def more_flips(self) -> float | None:
        """Share of decisions that flip there, less the share that flips here."""
        if self.here is None or self.there is None:
            return None
        here, there = self.here.flip_ratio, self.there.flip_ratio
        return None if here is None or there is None else there - here

    @property
    def cosine_drop(self) -> float | None:
        """Cosine here, less cosine there."""
        if self.here is None or self.there is None:
            return None
        return self.here.cosine - self.there.cosine


def host_of(reading: Reading, target: Target) -> dict[str, Any]:
    """A device as `exporter.devices.host.matches` wants it; it has the cores that it ran on."""
    return {
        "isa": reading.isa,
        "features": reading.features,
        "cores": reading.facts.get("cores", target.threads),
    }


def readings_to_json(readings: Sequence[Reading]) -> list[dict[str, Any]]:
    """JSON-ready."""
    return [asdict(reading) for reading in readings]


def readings_from_json(data: Any) -> tuple[Reading, ...]:
    """What `readings_to_json` gave.

    Raises:
        ArtifactError: it is malformed.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    try:
        found = TypeAdapter(
            tuple[Reading, ...], config=ConfigDict(allow_inf_nan=False)
        ).validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(
            f"devices: {where}", "is malformed", got=first["msg"], remedy="check again."
        ) from error
    for reading in found:
        if any(amount < 0 for amount in _amounts(reading)):
            raise ArtifactError(
                f"devices: {reading.device}",
                "must hold no cost, size or difference below 0",
                remedy="check again.",
            )
        for agreement in (reading.here, reading.there):
            if agreement is not None and not (
                agreement.decisions > 0 and 0 <= (agreement.flips or 0) <= agreement.decisions
            ):
                raise ArtifactError(
                    f"devices: {reading.device}",
                    "must count its flips among its decisions",
                    got=f"{agreement.flips} of {agreement.decisions}",
                    remedy="check again.",
                )
    names = [reading.device for reading in found]
    if len(set(names)) < len(names) or len(names) > MAX_READINGS:
        raise ArtifactError(
            "devices", "must hold one reading a device", got=len(names), remedy="check again."
        )
    return found


def _amounts(reading: Reading) -> list[float]:
    """Every number of a reading that cannot be negative."""
    told: list[float | None] = [reading.float_difference, reading.examples, reading.decode_tokens]
    for cost in (reading.reference, reading.candidate):
        told += [cost.answer, cost.spread, cost.load, cost.heap_mib, cost.peak_mib]
        told += [*cost.phases.values(), *cost.classes.values()]
    told += (reading.smallest_mib or {}).values()
    for phases in (reading.times_ms or {}).values():
        told += [ms for times in phases.values() for ms in times]
    return [amount for amount in told if amount is not None]
