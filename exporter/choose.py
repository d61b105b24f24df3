"""Which candidate is judged on test data: the fastest of those that pass on development data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from exporter.judge.measure import Measurements
from exporter.judge.verdict import FAIL, INCONCLUSIVE, PASS, Judgement
from exporter.models.scores import Scores
from exporter.recipe import Candidate
from exporter.stages import Built, Checkpoint


@dataclass(frozen=True)
class Attempt:
    """What came of one candidate.

    Attributes:
        status: "judged" on development data, "skipped" (does not apply), "failed" (an error).
        reason: why it was skipped or failed; empty otherwise.
        built: the model, when judged.
        float_built: the float32 graph it was quantized from.
        checkpoint: what pruning and fine-tuning made, when there was any.
        reference: the model whose quality it is judged against.
        scores, measurements, judgements: on development data.
        removed: what pruning removed, JSON-ready, when something was.
        recovery: how fine-tuning went, JSON-ready, when there was any.
    """

    candidate: Candidate
    status: Literal["judged", "skipped", "failed"]
    reason: str = ""
    built: Built | None = None
    float_built: Built | None = None
    checkpoint: Checkpoint | None = None
    reference: Built | None = None
    scores: Scores | None = None
    measurements: Measurements | None = None
    judgements: tuple[Judgement, ...] = ()
    removed: dict[str, object] | None = None
    recovery: dict[str, object] | None = None

    @property
    def latency_ratio(self) -> float:
        """Latency over the reference's; infinite when it was not measured."""
        return self.measurements.latency_ratio.value if self.measurements else float("inf")


def best(attempts: Sequence[Attempt]) -> Attempt | None:
    """The attempt to judge on test data, or None when none was built.

    Those that pass every budget come first, the fastest of them wins. Without one, those whose
    evidence is too thin but points the right way, by the least loss; then by failed budgets.
    """
    judged = [a for a in attempts if a.status == "judged"]
    return min(judged, key=_rank, default=None)


def _rank(attempt: Attempt) -> tuple[float, ...]:
    failed = sum(j.verdict == FAIL for j in attempt.judgements)
    open_ones = [j for j in attempt.judgements if j.verdict == INCONCLUSIVE]
    if all(j.verdict == PASS for j in attempt.judgements):
        return (0, attempt.latency_ratio)
    # margin is the room left to the limit: negative when the measured value is beyond it
    beyond = sum(j.margin is None or j.margin < 0 for j in open_ones)
    loss = sum(1 - j.margin / abs(j.limit) for j in open_ones if j.margin is not None and j.limit)
    return (1 + (beyond > 0) + 2 * (failed > 0), failed, loss, attempt.latency_ratio)
