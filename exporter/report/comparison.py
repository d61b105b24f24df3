"""The comparison of two artifacts as data; docs/compare.md describes its JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from exporter.judge.verdict import FAIL, INCONCLUSIVE, Judgement, Verdict, overall
from exporter.report.document import json_ready
from exporter.report.rows import bare
from exporter.report.wording import ABSENT, judged_figure, number, side

SCHEMA = 1


@dataclass(frozen=True)
class Compared:
    """One of the two artifacts.

    Attributes:
        location: its directory, as it was given.
        verdict: its own, against its original.
        manifest_sha256: of its manifest.json, which names every other file's.
    """

    location: str
    name: str
    task: str
    target: str
    verdict: str
    manifest_sha256: str


@dataclass(frozen=True)
class Change:
    """One fact that differs; a side that lacks it has None."""

    section: str
    name: str
    old: Any
    new: Any


@dataclass(frozen=True)
class Comparison:
    """May `new` take the place of `old`?

    Attributes:
        judgements: one a metric; `reference` is old, `candidate` is new.
        changes: what differs in how the two came to be.
        tolerance: share by which a cost may grow.
        confidence: one-sided, of every interval.
        examples: test examples that both were scored on.
        notes: what a reader should know.
    """

    old: Compared
    new: Compared
    judgements: tuple[Judgement, ...]
    changes: tuple[Change, ...]
    tolerance: float
    confidence: float
    examples: int
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """FAIL when something regressed, INCONCLUSIVE when something is open, else PASS."""
        return overall(self.judgements)

    @property
    def exit_code(self) -> int:
        """0 no regression, 1 a regression, 3 inconclusive."""
        return self.verdict.exit_code

    @property
    def summary(self) -> str:
        """One sentence why the verdict is what it is."""
        lost = [j for j in self.judgements if j.verdict is FAIL]
        thin = [j for j in self.judgements if j.verdict is INCONCLUSIVE]
        if lost:
            which = "one metric" if len(lost) == 1 else f"{len(lost)} metrics"
            return f"The new artifact regresses in {which}: {'; '.join(map(_lost, lost))}."
        if thin or not self.judgements:
            reasons = " ".join(j.reason for j in thin)
            return f"It is not shown that the new artifact may replace the old one. {reasons}"
        changed = "" if self.changes else " Nothing changed in recipe, data or versions."
        return f"The new artifact may replace the old one: no metric regresses.{changed}"

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, with the fields that docs/compare.md describes."""
        ready: dict[str, Any] = json_ready(
            {
                "schema": SCHEMA,
                "verdict": self.verdict.value,
                "summary": self.summary,
                "old": asdict(self.old),
                "new": asdict(self.new),
                "metrics": [_metric(j) for j in self.judgements],
                "changes": [asdict(change) for change in self.changes],
                "tolerance": self.tolerance,
                "confidence": self.confidence,
                "examples": self.examples,
                "notes": self.notes,
            }
        )
        return ready


@dataclass(frozen=True)
class Row:
    """One metric in words."""

    title: str
    old: str
    new: str
    change: str
    interval: str
    allowed: str
    verdict: str
    reason: str


def comparison_rows(comparison: Comparison) -> tuple[Row, ...]:
    """The judgements as every format shows them."""
    return tuple(_row(judgement) for judgement in comparison.judgements)


def change_text(value: Any) -> str:
    """One side of a change in words."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(change_text, value)) or ABSENT
    text = f"{value:g}" if isinstance(value, float) else str(value)
    is_hash = len(text) == 64 and set(text) <= set("0123456789abcdef")
    return f"{text[:12]}…" if is_hash else text


def _row(judgement: Judgement) -> Row:
    data = judgement.to_json()
    ends = [judged_figure(end, judgement.unit) for end in (judgement.low, judgement.high)]
    change = judged_figure(judgement.measured, judgement.unit)
    exact = ends[0] == ends[1] == change
    return Row(
        judgement.title,
        side(data, "reference"),
        side(data, "candidate"),
        change,
        "exact" if exact and change != ABSENT else " to ".join(map(bare, ends)),
        _allowed(judgement),
        judgement.verdict.value,
        judgement.reason,
    )


def _allowed(judgement: Judgement) -> str:
    if number(judgement.limit) == ABSENT:
        return ABSENT
    unit = judgement.unit
    return f"≤ {judgement.limit:g}{unit if unit in ('×', '') else f' {unit}'}"


def _lost(judgement: Judgement) -> str:
    row = _row(judgement)
    return f"{row.title} {row.old} → {row.new}, that is {row.change}, allowed {row.allowed}"


def _metric(judgement: Judgement) -> dict[str, Any]:
    renamed = {"reference": "old", "candidate": "new", "measured": "change", "limit": "allowed"}
    return {renamed.get(name, name): value for name, value in judgement.to_json().items()}
