"""The report as data: everything the reports show, in one versioned, JSON-ready value.

docs/report.md describes the fields for those who read report.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from exporter.errors import ArtifactError

SCHEMA = 1

VerdictName = Literal["PASS", "FAIL", "INCONCLUSIVE"]
Status = Literal["chosen", "passed", "failed", "inconclusive", "skipped", "error", "not tried"]


@dataclass(frozen=True)
class Phase:
    """Latency of one phase of the workload, timed in turns with the reference.

    Attributes:
        name: "run", or for language models "prefill" and "decode".
        unit: "ms", or "ms a token".
        ratio: candidate over reference, with its interval `low` to `high`.
        rounds: paired rounds behind it.
    """

    name: str
    reference_p50: float | None = None
    reference_p95: float | None = None
    candidate_p50: float | None = None
    candidate_p95: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str = "ms"
    rounds: int | None = None


@dataclass(frozen=True)
class CandidateRow:
    """What came of one way to make the model smaller, on development data.

    Attributes:
        reason: why it was skipped or failed, or which budget it lost; "" when there is none.
        quality: measured value of `quality_metric`, such as 0.4 points or a ratio of 1.02.
        quality_metric: a key of `exporter.budget.BUDGET_KINDS`.
        latency_ratio: over the reference's.
        size_ratio: size on disk over the reference's.
        instruction_ratio: of the workload on the target's emulated CPU; None: not counted.
    """

    name: str
    status: Status
    reason: str = ""
    quality: float | None = None
    quality_metric: str | None = None
    latency_ratio: float | None = None
    size_ratio: float | None = None
    size_mib: float | None = None
    instruction_ratio: float | None = None


@dataclass(frozen=True)
class Observation:
    """A figure that was measured and is not judged, with the reason why it is not."""

    title: str
    unit: str = ""
    reference: float | None = None
    candidate: float | None = None
    note: str = ""


@dataclass(frozen=True)
class SliceRow:
    """One group of test examples.

    Attributes:
        grouping: what divides the examples: "label", or a column.
        name: of the group.
        count: examples in it.
        loss: points of accuracy lost, or the ratio of perplexities.
        low, high: bounds of `loss` that hold for all groups together.
    """

    grouping: str
    name: str
    count: int
    loss: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Flip:
    """A test example that the candidate answers otherwise than the reference.

    Attributes:
        text: what was asked, shortened; for language models what stood before the token.
        expected: the right answer.
        kl_nats: divergence of the two answers; None where there is none.
        image: PNG as base64, "" where the example is no picture.
    """

    text: str
    expected: str
    reference: str
    candidate: str
    kl_nats: float | None = None
    image: str = ""


@dataclass(frozen=True)
class Report:
    """Everything the reports show.

    Attributes:
        title: such as "code_lm for mobile".
        verdict: of all budgets together.
        summary: one sentence why; `exporter.report.wording.explain` makes it.
        judgements: one a budget, as `exporter.judge.verdict.Judgement.to_json` gives it.
        model, data, target, environment: facts in the order they are shown.
        recipe: the candidate that ships, resolved.
        phases: latency of each phase.
        times: "reference" and "candidate" -> ms of the whole workload, one a round.
        observations: measured, not judged.
        slices: groups of test examples, worst first.
        devices: what each device of the target told, as `exporter.judge.reading.Reading` holds it.
        flips: test examples answered otherwise; empty where quoting them was not allowed.
        candidates: in the order they were tried.
        stability: verdicts and figures of the same candidate with other seeds; None when it was
            made once.
        pruning: what was removed; None when nothing was.
        recovery: how fine-tuning went; None when there was none.
        parity: PyTorch against the exported float32 graph; None for models that came as ONNX.
        audit: what onnxruntime really runs.
        support: which releases of onnxruntime take the files that ship, and what accelerators of
            phones could; None in reports of tools that did not look.
        versions: library -> version.
        seed: of everything random.
        command: what makes this artifact again.
        runtime: what loads the files that ship.
        notes: remarks for the reader, such as what was skipped and why.
        schema: version of this layout.
    """

    title: str
    verdict: VerdictName
    summary: str
    judgements: tuple[dict[str, Any], ...]
    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    target: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    phases: tuple[Phase, ...] = ()
    times: dict[str, list[float]] = field(default_factory=dict)
    observations: tuple[Observation, ...] = ()
    slices: tuple[SliceRow, ...] = ()
    devices: tuple[dict[str, Any], ...] = ()
    flips: tuple[Flip, ...] = ()
    candidates: tuple[CandidateRow, ...] = ()
    stability: dict[str, Any] | None = None
    pruning: dict[str, Any] | None = None
    recovery: dict[str, Any] | None = None
    parity: dict[str, Any] | None = None
    audit: dict[str, Any] | None = None
    support: dict[str, Any] | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    command: str = ""
    runtime: Literal["onnxruntime", "onnxruntime-genai"] = "onnxruntime"
    notes: tuple[str, ...] = ()
    schema: int = SCHEMA

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; NaN and infinities become null, since JSON has none."""
        ready: dict[str, Any] = json_ready({"schema": self.schema, **asdict(self)})
        return ready

    @classmethod
    def from_json(cls, data: Any) -> Report:
        """What `to_json` gave.

        Raises:
            ArtifactError: another schema, a missing field or one of the wrong type.
        """
        from pydantic import TypeAdapter, ValidationError

        found = data.get("schema") if isinstance(data, Mapping) else None
        if found != SCHEMA:
            raise ArtifactError(
                "report.json",
                f"must be of schema {SCHEMA}",
                got=found,
                remedy="export again with this version.",
            )
        try:
            return TypeAdapter(cls).validate_python(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ArtifactError(
                "report.json",
                f"field '{where}' is malformed",
                got=first["msg"],
                remedy="export again.",
            ) from error


def json_ready(value: Any) -> Any:
    """Plain JSON types: tuples as lists, numpy scalars as numbers, no NaN."""
    if isinstance(value, Mapping):
        return {str(k): json_ready(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_ready(v) for v in value]
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return json_ready(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    return str(value)
