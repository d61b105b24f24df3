"""Geometry of the drawing of round times; templates/distributions.html draws it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from exporter.report.charts import Frame, Tick, axis_ticks
from exporter.report.document import Report
from exporter.report.wording import with_unit

# As many dots as rounds are easily told apart; more rounds are drawn by their quantiles.
DOTS = 120
WIDE = Frame("wide", 920.0, 196.0, 96.0, 8.0, 900.0, 150.0)
NARROW = Frame("narrow", 360.0, 236.0, 8.0, 8.0, 352.0, 190.0)
BAND = 34.0  # height of a band of dots
HEADING = 20.0  # above a band: its name where the drawing is narrow, its median
# The axis ends where the slowest twentieth of either model begins, and this much later.
BEYOND = 1.35
GOLDEN = 0.6180339887498949  # multiples of it, modulo 1, never cluster


@dataclass(frozen=True)
class Band:
    """Rounds of one model; places in the drawing's units.

    Attributes:
        dots: (x, y) of each dot.
        median, p95: x of the two quantiles; None for a quantile beyond the axis.
        label_x, label_side: where the median's label stands, and which end of it.
        beyond: rounds slower than the axis goes.
    """

    name: str
    top: float
    bottom: float
    dots: tuple[tuple[float, float], ...]
    median: float
    median_label: str
    label_x: float
    label_side: str
    p95: float | None
    beyond: int


@dataclass(frozen=True)
class Distributions:
    """Round times of reference and candidate on one axis that starts at zero.

    Attributes:
        limit: where the candidate's median may lie at most, by the ratio that is allowed; None
            when there is no such budget.
        limit_x, limit_side: where its label stands, and which end of it.
        text: the same in words.
        rounds: of the reference.
        thinned: a dot stands for more than one round.
    """

    frame: Frame
    radius: float
    ticks: tuple[Tick, ...]
    unit: str
    bands: tuple[Band, ...]
    limit: float | None
    limit_x: float
    limit_side: str
    limit_label: str
    text: str
    rounds: int
    thinned: bool


def distributions(report: Report, frame: Frame) -> Distributions | None:
    """Round times of both models; None when the report has none, or of one model only."""
    times = {
        name: sorted(float(ms) for ms in report.times.get(name, ()) if math.isfinite(ms) and ms > 0)
        for name in ("reference", "candidate")
    }
    if not all(times.values()):
        return None
    seconds = max(_quantile(t, 0.5) for t in times.values()) >= 10_000
    scale, unit = (1e-3, "s") if seconds else (1.0, "ms")
    end = _axis_end([[scale * ms for ms in all_ms] for all_ms in times.values()])

    def x_of(value: float) -> float:
        return round(frame.left + (frame.right - frame.left) * value / end, 1)

    space = (frame.bottom - frame.top - 2 * (HEADING + BAND)) / 2
    bands = []
    for place, (name, all_ms) in enumerate(times.items()):
        top = frame.top + HEADING + place * (HEADING + BAND + space)
        values = [scale * ms for ms in all_ms]
        median, p95 = _quantile(values, 0.5), _quantile(values, 0.95)
        bands.append(
            Band(
                name,
                round(top, 1),
                round(top + BAND, 1),
                tuple(
                    (x_of(value), round(top + 3 + (BAND - 6) * ((i + 1) * GOLDEN % 1), 1))
                    for i, value in enumerate(_thinned(values))
                    if value <= end
                ),
                x_of(median),
                f"median {with_unit(median, unit)}",
                *_label(x_of(median), frame, 52.0),
                x_of(p95) if p95 <= end else None,
                sum(value > end for value in values),
            )
        )
    ratio = _limit(report)
    limit = None if ratio is None else ratio * scale * _quantile(times["reference"], 0.5)
    return Distributions(
        frame,
        3.2 if frame.kind == "wide" else 2.8,
        tuple(Tick(x_of(v), f"{v:g}") for v in axis_ticks((0.0, end))),
        unit,
        tuple(bands),
        None if limit is None or limit > end else x_of(limit),
        *_label(frame.left if limit is None else x_of(limit), frame, 74.0),
        "" if ratio is None else f"limit, {ratio:g}× the reference",
        _text(times, ratio),
        len(times["reference"]),
        len(times["reference"]) > DOTS,
    )


def _text(times: dict[str, list[float]], ratio: float | None) -> str:
    """The drawing in words."""
    parts = [
        f"{name}: {len(t):,} rounds, median {with_unit(_quantile(t, 0.5), 'ms')}, half of them "
        f"between {with_unit(_quantile(t, 0.25), 'ms')} and {with_unit(_quantile(t, 0.75), 'ms')}, "
        f"95 % within {with_unit(_quantile(t, 0.95), 'ms')}, slowest {with_unit(t[-1], 'ms')}"
        for name, t in times.items()
    ]
    allowed = "" if ratio is None else f" Allowed is {ratio:g}× the reference."
    return f"{'. '.join(p[0].upper() + p[1:] for p in parts)}.{allowed}"


def _axis_end(all_values: Sequence[Sequence[float]]) -> float:
    """Where the axis ends: a few rounds that were hit by other work must not squeeze the rest."""
    slowest = max(values[-1] for values in all_values)
    usual = max(_quantile(values, 0.95) for values in all_values)
    return 1.02 * min(slowest, BEYOND * usual)


def _thinned(values: Sequence[float]) -> list[float]:
    """At most DOTS values with the same distribution, from sorted ones."""
    if len(values) <= DOTS:
        return list(values)
    return [_quantile(values, (i + 0.5) / DOTS) for i in range(DOTS)]


def _quantile(values: Sequence[float], share: float) -> float:
    """A quantile of sorted values, between neighbours in proportion."""
    place = share * (len(values) - 1)
    below = math.floor(place)
    above = min(below + 1, len(values) - 1)
    return values[below] + (place - below) * (values[above] - values[below])


def _label(x: float, frame: Frame, half: float) -> tuple[float, str]:
    """Where a label of half-width `half` for the place `x` stands without leaving the drawing."""
    if x - half < frame.left:
        return frame.left, "start"
    return (frame.right, "end") if x + half > frame.right else (x, "middle")


def _limit(report: Report) -> float | None:
    for judgement in report.judgements:
        value = judgement.get("limit")
        if judgement.get("metric") == "latency_ratio" and isinstance(value, int | float):
            return float(value) if math.isfinite(value) else None
    return None
