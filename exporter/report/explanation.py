"""What was removed and what each removal cost, as data, from the facts of a report."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from exporter.budget import KL_TASKS
from exporter.report.document import Report, VerdictName
from exporter.report.explanation_words import (
    cost_label,
    judged_words,
    quantized_words,
    recovered_words,
    removed_words,
)
from exporter.report.removed import Counted, Recovered, Removed, read_facts
from exporter.report.wording import ABSENT, plain

SCHEMA = 1


@dataclass(frozen=True)
class PartCost:
    """How far the answers move when one part alone is gone; see `exporter.report.removed.Cost`."""

    round: int
    part: str
    label: str
    layer: int | None
    before: int | None
    after: int | None
    divergence: float | None


@dataclass(frozen=True)
class Together:
    """How far all that a round removed moves the answers, before it was recovered from.

    Attributes:
        without: before anything took over from what went; None where nothing did.
        method: what took over; "" where nothing did.
    """

    round: int
    without: float | None
    divergence: float | None
    method: str


@dataclass(frozen=True)
class Explanation:
    """What became of a model on its way into an artifact, and at what cost.

    Attributes:
        candidate: the one that ships.
        measure, unit: of costs: the task's distillation loss.
        removed: what went, a sentence each; at least that nothing did.
        costs: of each part alone; empty in artifacts that did not measure them.
        together: of each round.
        sizes: `parameters` and `multiply_accumulates` (of one input) -> before and after.
        recovered: how fine-tuning made up for it, a sentence each.
        losses: (step, development loss) of each look during fine-tuning.
        quantized: what the numbers are made of, a sentence each.
        judged: quality as it was judged on test data, a sentence each.
    """

    title: str
    verdict: VerdictName
    summary: str
    candidate: str
    measure: str
    unit: str
    removed: tuple[str, ...]
    costs: tuple[PartCost, ...]
    together: tuple[Together, ...]
    sizes: dict[str, tuple[int, int]]
    recovered: tuple[str, ...]
    losses: tuple[tuple[int, float], ...]
    quantized: tuple[str, ...]
    judged: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; docs/explain.md describes it."""
        return {"schema": SCHEMA, **asdict(self)}

    @property
    def rounds(self) -> int:
        """How many rounds the cut took."""
        told = [one.round for one in self.together] + [one.round for one in self.costs]
        return max(told, default=0)

    def sections(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Headings and their sentences, in the order of the chain."""
        return (
            ("removed", self.removed),
            ("recovered", self.recovered),
            ("quantized", self.quantized),
            ("judged", self.judged),
        )


def explanation(report: Report) -> Explanation:
    """What a report says of the way from the original to what ships.

    Raises:
        ArtifactError: its facts of pruning or recovery cannot be.
    """
    removed = read_facts(Removed, report.pruning, "report.json: pruning")
    recovered = read_facts(Recovered, report.recovery, "report.json: recovery")
    kl = report.model.get("task") in KL_TASKS
    unit = "nats" if kl else ""
    costs = _costs(removed) if removed else ()
    return Explanation(
        title=plain(report.title),
        verdict=report.verdict,
        summary=plain(report.summary),
        candidate=plain(report.recipe.get("name") or ABSENT),
        measure="KL divergence" if kl else "distillation loss",
        unit=unit,
        removed=tuple(removed_words(removed, unit)),
        costs=costs,
        together=_together(removed) if removed else (),
        sizes={
            name: (sizes.before, sizes.after)
            for name in ("parameters", "multiply_accumulates")
            if removed and isinstance(sizes := getattr(removed, name), Counted)
        },
        recovered=tuple(recovered_words(recovered)),
        losses=tuple(
            (look.step, look.development_loss)
            for look in (recovered.history if recovered else ())
            if look.development_loss is not None
        ),
        quantized=tuple(quantized_words(report)),
        judged=tuple(judged_words(report)),
    )


def _costs(removed: Removed) -> tuple[PartCost, ...]:
    return tuple(
        PartCost(c.round, plain(c.part), cost_label(c), c.layer, c.before, c.after, c.divergence)
        for c in sorted(removed.costs, key=lambda c: c.round)
    )


def _together(removed: Removed) -> tuple[Together, ...]:
    return tuple(
        Together(
            number_,
            told.compensation.divergence_without if told.compensation else None,
            told.compensated,
            plain(told.compensation.method) if told.compensation else "",
        )
        for number_, told in enumerate(removed.told_rounds, 1)
        if told.compensated is not None
    )
