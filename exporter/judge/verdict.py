"""Verdicts: what a measurement, with its uncertainty, says about a budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any, TypeVar

from exporter.budget import Budget
from exporter.errors import (
    EXIT_FAIL,
    EXIT_INCONCLUSIVE,
    EXIT_PASS,
    ArtifactError,
)

Record = TypeVar("Record", "Measurement", "Judgement")


class Verdict(StrEnum):
    """What the evidence says about one budget, or about all of them."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"

    @property
    def exit_code(self) -> int:
        """What the command line returns."""
        return {"PASS": EXIT_PASS, "FAIL": EXIT_FAIL}.get(self.value, EXIT_INCONCLUSIVE)


PASS, FAIL, INCONCLUSIVE = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE


@dataclass(frozen=True)
class Measurement:
    """One number as it was measured.

    Attributes:
        value: NaN when it could not be measured.
        low: lower bound, -inf where there is none; equal to `value` for what is counted exactly.
        high: upper bound, inf where there is none.
        count: samples behind it.
        device: where it comes from.
    """

    value: float
    unit: str
    low: float
    high: float
    count: int
    device: str

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; what is not finite becomes None."""
        return _finite(asdict(self))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measurement:
        """The measurement that `to_json` made; a bound that was not finite is open again.

        Raises:
            ArtifactError: the data is malformed.
        """
        filled = dict(data)
        for name, absent in (("value", math.nan), ("low", -math.inf), ("high", math.inf)):
            if filled.get(name) is None:
                filled[name] = absent
        return _rebuilt(cls, filled)


@dataclass(frozen=True)
class Judgement:
    """One budget and what came of it; a field is None when it could not be measured.

    Attributes:
        metric: the budget's name, such as `accuracy_drop_points`.
        title: the same for people.
        unit: of `measured`, `low`, `high`, `limit` and `margin`.
        reference: the reference's own figure, in `value_unit`.
        candidate: the candidate's.
        measured: what the budget limits.
        low: lower confidence bound of `measured`.
        high: upper one.
        margin: room from `measured` to the limit; negative when it is beyond.
        reason: one sentence.
        value_unit: unit of `reference` and `candidate`.
        count: examples, documents, rounds or runs behind it.
        needed: how many of them would decide, when they are too few.
        device: that was judged, where it is one that was asked; None: this machine.
    """

    metric: str
    title: str
    unit: str
    reference: float | None
    candidate: float | None
    measured: float | None
    low: float | None
    high: float | None
    limit: float
    margin: float | None
    verdict: Verdict
    reason: str
    value_unit: str = ""
    count: int = 0
    needed: int | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "verdict", Verdict(self.verdict))
        for field in ("reference", "candidate", "measured", "low", "high", "margin"):
            value = getattr(self, field)
            if value is not None and not math.isfinite(value):
                object.__setattr__(self, field, None)
        if self.verdict is PASS and (self.measured is None or (self.margin or 0) < 0):
            raise ValueError(f"{self.metric} cannot pass with {self.measured} measured")

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, all fields by their names."""
        return {**asdict(self), "verdict": self.verdict.value}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Judgement:
        """The judgement that `to_json` made.

        Raises:
            ArtifactError: the data is malformed or contradicts itself.
        """
        return _rebuilt(cls, data)


def decide(good: str, limit: float, low: float, high: float) -> Verdict:
    """PASS when the whole interval is on the good side of the limit, FAIL when it is all beyond.

    Comparisons with NaN are false, so that what is not a number never passes.

    Args:
        good: "below" or "above", the side of the limit that is accepted.
    """
    inside = high <= limit if good == "below" else low >= limit
    beyond = low > limit if good == "below" else high < limit
    if inside and math.isfinite(low if good == "above" else high):
        return PASS
    return FAIL if beyond else INCONCLUSIVE


def judged(
    budget: Budget,
    *,
    measured: float,
    low: float,
    high: float,
    reason: str,
    reference: float | None = None,
    candidate: float | None = None,
    verdict: Verdict | None = None,
    value_unit: str = "",
    count: int = 0,
    needed: int | None = None,
    device: str | None = None,
) -> Judgement:
    """The judgement of an interval against a budget.

    Args:
        verdict: None lets the interval decide; INCONCLUSIVE or FAIL overrule it.
    """
    kind = budget.kind
    decided = decide(kind.good, budget.limit, low, high) if verdict is None else verdict
    if not math.isfinite(measured) and decided is PASS:
        decided = INCONCLUSIVE
    margin = budget.limit - measured if kind.good == "below" else measured - budget.limit
    return Judgement(
        kind.metric,
        kind.title,
        kind.unit,
        reference,
        candidate,
        measured,
        low,
        high,
        budget.limit,
        margin,
        decided,
        reason,
        value_unit,
        count,
        needed,
        device,
    )


def claim(budget: Budget, verdict: Verdict, low: float, high: float) -> str:
    """What an interval shows, in words: `the accuracy drop is at most 0.62 points, limit 1`."""
    kind = budget.kind
    unit = f" {kind.unit}" if kind.unit else ""
    if verdict is INCONCLUSIVE:
        shown = f"between {low:.4g} and {high:.4g}{unit}"
    elif (verdict is PASS) == (kind.good == "below"):
        shown = f"at most {high:.4g}{unit}"
    else:
        shown = f"at least {low:.4g}{unit}"
    return f"the {kind.title} is {shown}, limit {budget.limit:g}"


def overall(judgements: Iterable[Judgement]) -> Verdict:
    """FAIL when a budget failed, else INCONCLUSIVE when one is open or none was judged."""
    verdicts = {judgement.verdict for judgement in judgements}
    if FAIL in verdicts:
        return FAIL
    return PASS if verdicts == {PASS} else INCONCLUSIVE


def _finite(data: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in data.items()
    }


def _rebuilt(cls: type[Record], data: Mapping[str, Any]) -> Record:
    names = {field.name for field in fields(cls)}
    try:
        return cls(**{name: value for name, value in data.items() if name in names})
    except (TypeError, ValueError) as error:
        raise ArtifactError(
            cls.__name__.lower(), "must be complete and sound", got=str(error), remedy="rerun."
        ) from error
