"""Facts of pruning and recovery as report.json holds them, read so that damaged ones are refused.

Artifacts of older versions lack `costs` and `by_round`; all that is absent reads as None or empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from exporter.errors import ArtifactError
from exporter.report.wording import plain

MOST_LAYERS = 100_000
MOST_COSTS = 20_000
MOST_ROUNDS = 100
MOST_SHOWN = 80  # letters of a value that an error quotes

Count = Annotated[int, Field(ge=0, le=10**15)]
Layer = Annotated[int, Field(ge=0, lt=MOST_LAYERS)]
Step = Annotated[int, Field(ge=0, le=10**12)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Facts(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)


class Counted(_Facts):
    """How many there were and are; `importance_kept` is the share of all importance that stays."""

    before: Count
    after: Count
    importance_kept: Share | None = None

    @model_validator(mode="after")
    def _fewer(self) -> Counted:
        if self.after > self.before:
            raise ValueError(f"after must be at most the {self.before} there were before")
        return self


class Layers(Counted):
    """Whole layers; `kept` are those of the original that stay, ascending, counted from 0."""

    kept: list[Layer] = Field(max_length=MOST_LAYERS)

    @model_validator(mode="after")
    def _some_of_all(self) -> Layers:
        if self.before > MOST_LAYERS:
            raise ValueError(f"before must be at most {MOST_LAYERS} layers")
        if self.kept != sorted({i for i in self.kept if i < self.before}):
            raise ValueError(f"kept must be some of {self.before} layers, ascending")
        if len(self.kept) != self.after:
            raise ValueError(f"kept must be the {self.after} layers that stay")
        return self


class Cost(_Facts):
    """How far the answers move when one part alone is off; None where they become NaN.

    Attributes:
        part: `layers`, `ffn`, `heads`, `hidden`, `channels` or `sparsity`.
        layer: of the original, counted from 0; None for what lies in no layer or in all.
        name: of what it lies in, where that has no number.
        round: 1 for the first.
    """

    part: Annotated[str, Field(max_length=64)]
    divergence: float | None
    layer: Layer | None = None
    name: Annotated[str, Field(max_length=400)] | None = None
    before: Count | None = None
    after: Count | None = None
    round: Annotated[int, Field(ge=1, le=MOST_ROUNDS)] = 1


class Compensation(_Facts):
    """What took over from removed units, and how far the answers move without and with it.

    Zeros that were set afterwards are part of neither.
    """

    method: Annotated[str, Field(max_length=64)]
    divergence_without: float | None = None
    divergence_with: float | None = None


class Round(_Facts):
    """How far all that one round removed moves the answers, before recovery."""

    divergence: float | None = None
    compensation: Compensation | None = None

    @property
    def compensated(self) -> float | None:
        """How far the answers move after compensation, where there was one."""
        told = self.compensation.divergence_with if self.compensation else None
        return self.divergence if told is None else told


class Rising(_Facts):
    """Zeros that rose while fine-tuning went on."""

    final: Share


class Removed(Round):
    """What was removed in all."""

    layers: Layers | None = None
    ffn: Counted | None = None
    heads: Counted | None = None
    hidden: Counted | None = None
    channels: Counted | None = None
    sparsity: Share | Rising | None = None
    criterion: Annotated[str, Field(max_length=64)] | None = None
    parameters: Counted | None = None
    multiply_accumulates: Counted | None = None
    costs: list[Cost] = Field(default_factory=list, max_length=MOST_COSTS)
    by_round: list[Round] = Field(default_factory=list, max_length=MOST_ROUNDS)

    @property
    def told_rounds(self) -> list[Round]:
        """Each round's own divergences; this itself where there was one."""
        return self.by_round or [self]


class Look(_Facts):
    """One look at development data; `gap` is the loss beyond the teacher's."""

    step: Step
    development_loss: float | None = None
    gap: float | None = None


class Recovered(_Facts):
    """How fine-tuning went."""

    history: list[Look] = Field(default_factory=list, max_length=1_000_000)
    best_step: Step = 0
    development_loss: float | None = None
    gap_high: float | None = None
    quantize_aware: Annotated[str, Field(max_length=64)] | None = None


Known = TypeVar("Known", bound=_Facts)


def read_facts(kind: type[Known], facts: Mapping[str, Any] | None, place: str) -> Known | None:
    """Facts of one kind; None where there are none.

    Raises:
        ArtifactError: naming the first fact that cannot be.
    """
    if not facts:
        return None
    try:
        return kind.model_validate(dict(facts))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join((place, *map(str, first["loc"])))
        rule = first["msg"].removeprefix("Value error, ")
        whole = isinstance(first["input"], dict | list)
        raise ArtifactError(
            plain(where),
            f"{rule[:1].lower()}{rule[1:]}",
            got=None if whole else plain(repr(first["input"]))[:MOST_SHOWN],
            remedy="export again, or do not trust it.",
        ) from error
