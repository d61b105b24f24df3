"""Which candidate is judged on test data: the cheapest of those that pass on development data.

Cheap is what the target's own CPU has to do, where an emulator of it counts instructions, else what
takes little time here: int8 that halves the time of this machine may gain nothing on that one.
"""

from __future__ import annotations

from collections.abc import Sequence

from exporter.attempts import Attempt
from exporter.judge.verdict import FAIL, INCONCLUSIVE, PASS


def best(attempts: Sequence[Attempt]) -> Attempt | None:
    """The attempt to judge on test data, or None when none was built.

    Those that pass every budget come first, the cheapest of them wins. Without one, those whose
    evidence is too thin but points the right way, by the least loss; then by failed budgets.
    """
    judged = [a for a in attempts if a.status == "judged"]
    return min(judged, key=_rank, default=None)


def _rank(attempt: Attempt) -> tuple[float, ...]:
    failed = sum(j.verdict == FAIL for j in attempt.judgements)
    open_ones = [j for j in attempt.judgements if j.verdict == INCONCLUSIVE]
    if all(j.verdict == PASS for j in attempt.judgements):
        return (0, attempt.cost_ratio)
    # margin is the room left to the limit: negative when the measured value is beyond it
    beyond = sum(j.margin is None or j.margin < 0 for j in open_ones)
    loss = sum(1 - j.margin / abs(j.limit) for j in open_ones if j.margin is not None and j.limit)
    return (1 + (beyond > 0) + 2 * (failed > 0), failed, loss, attempt.cost_ratio)
