"""Judge what devices told: one judgement a budget, of the device that comes off worst.

Answers must hold on every device that is asked. What running costs binds only on those of the
target's class: another CPU has other kernels, and its figure says nothing of the target's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from exporter.budget import DEVICE_FAILURES, Budget
from exporter.devices.host import of_class
from exporter.judge.latency import judge_latency
from exporter.judge.reading import Reading, host_of
from exporter.judge.verdict import FAIL, INCONCLUSIVE, Judgement, Verdict, judged
from exporter.target import Target, Workload

METRICS = (
    DEVICE_FAILURES,
    "device_difference",
    "device_flip_ratio",
    "device_cosine_drop",
    "instruction_ratio",
    "board_memory_mib",
)


def judge_devices(readings: Sequence[Reading], target: Target, task: str) -> list[Judgement]:
    """One judgement for each budget on devices about which a device told something.

    What several devices told of one budget is judged by the worst. A required device that is
    missing, or did not come to an end, leaves the verdict open whatever the others say. Costs are
    judged on devices of the target's class alone; without one they are not judged.
    """
    if not readings:
        return []
    ours = [r for r in readings if of_class(r.isa, r.features, target)]
    found = []
    for budget in target.budgets.for_task(task):
        metric = budget.kind.metric
        if metric == DEVICE_FAILURES:
            judgement = _failures(budget, readings)
        elif metric == "instruction_ratio":
            judgement = _instructions(budget, ours)
        elif metric == "board_memory_mib":
            judgement = _memory(budget, ours)
        elif metric == "latency_p95_ms":
            judgement = _p95(budget, readings, target)
        elif metric in _FIGURES:
            judgement = _worst(budget, readings, *_FIGURES[metric])
        else:
            continue
        if judgement is not None:
            found.append(judgement)
    return found


def devices_not_judged(readings: Sequence[Reading], target: Target, task: str) -> list[str]:
    """A sentence for each device that told nothing, and each of their budgets that stays open."""
    told = []
    for reading in readings:
        if reading.status in ("missing", "unfinished") and not reading.required:
            told.append(f"{reading.device} was not asked: {_sentence(reading.reason)}")
        if reading.float_reason:
            told.append(
                f"The float32 reference did not run on {reading.device}: "
                f"{_sentence(reading.float_reason)}"
            )
    judged_ = {j.metric for j in judge_devices(readings, target, task)}
    open_ = [
        budget.kind.metric
        for budget in target.budgets.for_task(task)
        if budget.kind.metric in METRICS
        and budget.kind.metric not in judged_
        and (budget.kind.metric != DEVICE_FAILURES or target.devices)
    ]
    bound = [metric for metric in open_ if metric in _TOLD]
    if bound:
        strangers = [r.device for r in readings if any(_TOLD[metric](r) for metric in bound)]
        told.append(_not_of_class(bound, strangers, target))
    rest = [metric for metric in open_ if metric not in _TOLD]
    if rest:
        told.append(
            f"{', '.join(rest)}: not judged, since no device told. `exporter devices` says "
            "which can be used here, and what others need."
        )
    return told


def _not_of_class(metrics: Sequence[str], strangers: Sequence[str], target: Target) -> str:
    """Why costs were not judged, with those who told of them and have no say."""
    wanted = ", ".join([target.isa, *target.features])
    others = (
        f" {', '.join(strangers)} told, and {'is' if len(strangers) == 1 else 'are'} of another."
        if strangers
        else ""
    )
    return (
        f"{', '.join(metrics)}: not judged, since no device of {target.name}'s class ({wanted}) "
        f"told.{others} `exporter devices` says which can be used here, and what others need."
    )


def _counts(reading: Reading) -> bool:
    return reading.unit == "instructions" and reading.cost_ratio is not None


def _limits(reading: Reading) -> bool:
    return reading.smallest_mib is not None and reading.status == "ran"


# metric that only devices of the target's class are judged by -> whether a reading tells of it
_TOLD: dict[str, Callable[[Reading], bool]] = {
    "instruction_ratio": _counts,
    "board_memory_mib": _limits,
}


# metric -> what a reading says of it, and the same in words
_FIGURES: dict[str, tuple[Callable[[Reading], float | None], Callable[[Reading], str]]] = {
    "device_difference": (
        lambda r: r.float_difference,
        lambda r: f"The float32 reference differs by {r.float_difference:.3g} on {r.device}",
    ),
    "device_flip_ratio": (
        lambda r: r.more_flips,
        lambda r: (
            f"On {r.device} {_flips(r.there)} are unlike the float32 reference's, "
            f"here {_flips(r.here)}"
        ),
    ),
    "device_cosine_drop": (
        lambda r: r.cosine_drop,
        lambda r: (
            f"On {r.device} the cosine to the float32 reference is "
            f"{r.there.cosine if r.there else 0:.4f}, here {r.here.cosine if r.here else 0:.4f}"
        ),
    ),
}


def _flips(agreement: object) -> str:
    flips, decisions = getattr(agreement, "flips", 0), getattr(agreement, "decisions", 0)
    return f"{flips:,} of {decisions:,} answers"


def _failures(budget: Budget, readings: Sequence[Reading]) -> Judgement | None:
    """Whether it runs wherever it was asked to; None where no device could be asked."""
    failed = [r for r in readings if r.status == "failed"]
    ran = [r for r in readings if r.status == "ran"]
    open_ = [r for r in readings if r.required and r.status in ("missing", "unfinished")]
    if not (failed or ran or open_):
        return None
    count = float(len(failed))
    verdict: Verdict | None = None
    if failed:
        reason = " ".join(_sentence(r.reason) for r in failed)
        verdict = FAIL if count > budget.limit else None
    else:
        reason = f"It runs on {', '.join(r.device for r in ran)}." if ran else ""
    if open_ and verdict is None:
        verdict = INCONCLUSIVE
        wanted = " ".join(f"{r.device} is required: {_sentence(r.reason)}" for r in open_)
        reason = f"{wanted} {reason}".strip()
    return judged(
        budget,
        measured=count,
        low=count,
        high=count,
        reason=reason,
        verdict=verdict,
        reference=None,
        candidate=count,
        count=len(failed) + len(ran),
    )


def _worst(
    budget: Budget,
    readings: Sequence[Reading],
    figure: Callable[[Reading], float | None],
    words: Callable[[Reading], str],
) -> Judgement | None:
    """The largest figure that a device told."""
    told = [(value, r) for r in readings if (value := figure(r)) is not None]
    if not told:
        return None
    value, reading = max(told, key=lambda pair: pair[0])
    return judged(
        budget,
        measured=value,
        low=value,
        high=value,
        reason=f"{words(reading)}, limit {budget.limit:g}.{_why(reading, value > budget.limit)}",
        candidate=value,
        count=reading.here.decisions if reading.here else reading.examples,
        device=reading.device,
    )


def _instructions(budget: Budget, readings: Sequence[Reading]) -> Judgement | None:
    told = [r for r in readings if _counts(r)]
    if not told:
        return None
    reading = max(told, key=lambda r: r.cost_ratio or 0.0)
    ratio = reading.cost_ratio or 0.0
    before, after = reading.reference.answer or 0.0, reading.candidate.answer or 0.0
    return judged(
        budget,
        measured=ratio,
        low=ratio,
        high=ratio,
        reason=f"{after / 1e6:,.4g} million instructions on {reading.device}, the float32 "
        f"reference {before / 1e6:,.4g} million, limit {budget.limit:g}×.",
        reference=before / 1e6,
        candidate=after / 1e6,
        value_unit="M",
        count=1,
        device=reading.device,
    )


def _p95(budget: Budget, readings: Sequence[Reading], target: Target) -> Judgement | None:
    """Real time on a device of the target's class; the slowest of them decides."""
    told = [
        replace(
            judgement,
            reason=f"On {reading.device}: {judgement.reason}",
            device=reading.device,
        )
        for reading in readings
        if reading.status == "ran"
        and reading.times_ms is not None
        and not reading.emulated
        and (
            judgement := judge_latency(
                budget,
                target,
                host_of(reading, target),
                reading.times_ms,
                Workload(decode_tokens=max(reading.decode_tokens, 1)),
            )
        )
        is not None
    ]
    return max(told, key=lambda judgement: judgement.measured or 0.0, default=None)


def _memory(budget: Budget, readings: Sequence[Reading]) -> Judgement | None:
    told = [r for r in readings if _limits(r)]
    if not told:
        return None
    sizes = [(r.smallest_mib or {}).get("candidate") for r in told]
    found = [size for size in sizes if size is not None]
    if len(found) < len(sizes):
        reading = told[sizes.index(None)]
        return judged(
            budget,
            measured=float("nan"),
            low=budget.limit,
            high=float("inf"),
            verdict=FAIL,
            reason=f"It does not run on {reading.device} with {budget.limit:g} MiB.",
            device=reading.device,
        )
    size = float(max(found))
    reading = told[sizes.index(max(found))]
    return judged(
        budget,
        measured=size,
        low=size,
        high=size,
        reason=f"It runs on {reading.device} with {size:g} MiB in all, its kernel included; "
        f"memory was tried in steps, limit {budget.limit:g}.",
        candidate=size,
        value_unit="MiB",
        count=1,
        device=reading.device,
    )


def _why(reading: Reading, lost: bool) -> str:
    """Where the proof of saturation fails, which explains answers that differ there."""
    told = reading.facts.get("saturation")
    if not (lost and isinstance(told, list) and told):
        return ""
    more = f" and {len(told) - _NAMED} more" if len(told) > _NAMED else ""
    named = "; ".join(str(line) for line in told[:_NAMED])
    return (
        f" Sums of int8 products can saturate there, in {named}{more}. A profile for x86-64 whose "
        "features leave out VNNI makes weights that cannot."
    )


_NAMED = 3  # operators in a sentence


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
