"""Prune and recover, in as many rounds as a candidate's cut takes; each link a cached stage."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from exporter import checkpoints
from exporter.recipe import Candidate, FineTune
from exporter.stages import Checkpoint, Context, Prepared, about


@dataclass(frozen=True)
class Recovered:
    """What pruning and fine-tuning made of the original.

    Attributes:
        checkpoint: None if the candidate asks for neither.
        removed: what went in all, JSON-ready; None without pruning, empty if nothing could go.
        skipped: what was asked for and could not be done, a sentence each.
        recovery: how fine-tuning went, JSON-ready; None without.
        ranges: the activation ranges that training learned, JSON-ready.
    """

    checkpoint: Checkpoint | None
    removed: dict[str, Any] | None = None
    skipped: tuple[str, ...] = ()
    recovery: dict[str, Any] | None = None
    ranges: tuple[dict[str, Any], ...] = ()


def recovered(
    context: Context,
    candidate: Candidate,
    teacher: Callable[[], Checkpoint | None],
    train: Prepared,
    development: Prepared,
) -> Recovered:
    """Prune and fine-tune as the candidate says, towards the same teacher in every round.

    The steps are shared out among the rounds, so that all of them train for as long as one would.

    Args:
        teacher: called for when there is something to recover, since it may have to be trained.
    """
    pruning, options = candidate.pruning, candidate.fine_tune
    if pruning is None:
        if options is None:
            return Recovered(None)
        tuned = checkpoints.fine_tuned(
            context,
            None,
            teacher(),
            options,
            train,
            development,
            distil=True,
            rounding=checkpoints.rounding_of(context, candidate),
        )
        facts, learned = _told(tuned)
        return Recovered(tuned, recovery=facts, ranges=learned)
    plans = [pruning]
    if options is not None:
        plans = checkpoints.rounds(context, pruning, options.largest_cut, train)
    shares = _shared(options, len(plans))
    checkpoint: Checkpoint | None = None
    removals: list[dict[str, Any]] = []
    skipped: dict[str, None] = {}
    recoveries: list[dict[str, Any]] = []
    ranges: tuple[dict[str, Any], ...] = ()
    for number, (plan, share) in enumerate(zip(plans, shares, strict=True), 1):
        within = context
        if len(plans) > 1:
            within = about(context, f"round {number} of {len(plans)}")
        checkpoint = checkpoints.pruned(within, plan, train, of=checkpoint)
        skipped |= dict.fromkeys(checkpoint.facts["skipped"])
        if not checkpoint.facts["removed"]:
            return Recovered(checkpoint, {}, tuple(skipped))
        removals.append(checkpoint.facts["removed"])
        if share is not None:
            checkpoint = checkpoints.fine_tuned(
                within,
                checkpoint,
                teacher(),
                share,
                train,
                development,
                distil=True,
                layers=kept_layers(removals),
                pruning=plan,
                # What is not yet as small as it will be need not learn to be rounded.
                rounding=checkpoints.rounding_of(context, candidate)
                if number == len(plans)
                else None,
            )
            told, ranges = _told(checkpoint)
            recoveries.append(told)
    return Recovered(
        checkpoint,
        joined(removals),
        tuple(skipped),
        _joined(recoveries, shares) if recoveries else None,
        ranges,
    )


def _told(tuned: Checkpoint) -> tuple[dict[str, Any], tuple[dict[str, Any], ...]]:
    """How fine-tuning went, and the ranges that it learned."""
    facts = dict(tuned.facts)
    return facts, tuple(facts.pop("ranges"))


def _shared(options: FineTune | None, rounds: int) -> list[FineTune | None]:
    """The options of each round: an equal part of the steps, the rest for the last."""
    if options is None:
        return [None] * rounds
    part = max(1, options.steps // rounds)
    last = max(1, options.steps - part * (rounds - 1))
    return [options.model_copy(update={"steps": steps}) for steps in [part] * (rounds - 1) + [last]]


def _joined(
    recoveries: Sequence[dict[str, Any]], shares: Sequence[FineTune | None]
) -> dict[str, Any]:
    """How all rounds went: one history, its steps counted on, and the end of the last round."""
    history: list[dict[str, Any]] = []
    before = 0
    for facts, share in zip(recoveries, shares, strict=True):
        assert share is not None
        offset = before
        history += [{**entry, "step": entry["step"] + offset} for entry in facts["history"]]
        before += share.steps
    return {**recoveries[-1], "history": history, "best_step": recoveries[-1]["best_step"] + offset}


def joined(removals: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What rounds removed in all, JSON-ready as one round's `removed` is.

    Importance that stayed is what stayed of what stayed. How far the answers moved is told round by
    round, as `by_round` and in `costs`: each tells it of the round before.
    """
    if len(removals) == 1:
        return removals[0]
    total: dict[str, Any] = {}
    for part in dict.fromkeys(name for removed in removals for name in removed):
        told = [removed[part] for removed in removals if part in removed]
        if not (isinstance(told[0], dict) and "before" in told[0]):
            continue
        total[part] = {**told[-1], "before": told[0]["before"]}
        shares = [entry["importance_kept"] for entry in told if entry.get("importance_kept")]
        if shares:
            total[part]["importance_kept"] = round(math.prod(shares), 4)
        if part == "layers":
            total[part] |= {"kept": kept_layers(removals), "importance": told[0]["importance"]}
    last = removals[-1]
    total |= {name: last[name] for name in ("sparsity", "criterion") if name in last}
    by_round = [
        {name: removed[name] for name in _OF_A_ROUND if name in removed} for removed in removals
    ]
    return {**total, "costs": _costs(removals), "by_round": by_round, "rounds": len(removals)}


_OF_A_ROUND = ("divergence", "compensation", "parameters", "multiply_accumulates")


def _costs(removals: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The costs of all rounds, each with its round, its layer numbered as in the original."""
    found = []
    for number, removed in enumerate(removals, 1):
        kept = kept_layers(removals[: number - 1])
        for cost in removed.get("costs", []):
            own = {"round": number}
            if kept is not None and "layer" in cost:
                own["layer"] = kept[cost["layer"]]
            found.append({**cost, **own})
    return found


def kept_layers(removals: Sequence[dict[str, Any]]) -> list[int] | None:
    """The original's layers that are left after all rounds; None if none went."""
    kept: list[int] | None = None
    for removed in removals:
        if "layers" in removed:
            now = removed["layers"]["kept"]
            kept = list(now) if kept is None else [kept[i] for i in now]
    return kept
