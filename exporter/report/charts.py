"""Geometry of the report's drawings; templates/charts.html draws it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from exporter.budget import BUDGET_KINDS
from exporter.report.document import CandidateRow, Report
from exporter.report.rows import BudgetRow
from exporter.report.wording import measured, number, plain, with_unit

# Shares of a budget that the strips show; what lies outside is drawn at the edge as an arrow.
STRIP_FROM, STRIP_TO = -0.25, 1.5


@dataclass(frozen=True)
class Strip:
    """One budget as a strip: the limit at the same place in every row.

    All positions are per cent of the strip's width.

    Attributes:
        zero: where nothing of the budget is used.
        limit: where all of it is used.
        value, low, high: the measured value and its interval; None when unknown.
        beyond: "left" or "right" when the value lies outside the strip.
    """

    zero: float
    limit: float
    value: float | None
    low: float | None
    high: float | None
    beyond: str


def strip(row: BudgetRow) -> Strip:
    """Where a budget's value and interval lie on the common strip."""
    beyond = ""
    if row.used is not None and not STRIP_FROM <= row.used <= STRIP_TO:
        beyond = "left" if row.used < STRIP_FROM else "right"
    return Strip(
        _place(0.0), _place(1.0), _at(row.used), _at(row.used_low), _at(row.used_high), beyond
    )


def _at(share: float | None) -> float | None:
    return None if share is None else _place(share)


def _place(share: float) -> float:
    """Share of a budget -> per cent of the strip's width, kept inside."""
    inside = min(max(share, STRIP_FROM), STRIP_TO)
    return round(100 * (inside - STRIP_FROM) / (STRIP_TO - STRIP_FROM), 2)


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    place: float
    label: str


@dataclass(frozen=True)
class Dot:
    """A candidate in the scatter plot; x, y and radius in the drawing's units."""

    x: float
    y: float
    radius: float
    name: str
    status: str
    hint: str
    label_y: float
    label_side: str  # "start": text to the right of the dot, "end": to the left


@dataclass(frozen=True)
class Scatter:
    """Candidates by latency (x) and by how much of the quality budget they use (y).

    Attributes:
        limit_x, limit_y: the budgets; None where there is none.
    """

    frame: Frame
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    limit_x: float | None
    limit_y: float | None
    dots: tuple[Dot, ...]
    y_title: str


@dataclass(frozen=True)
class Frame:
    """Size of a drawing and where its axes lie."""

    kind: str
    width: float
    height: float
    left: float
    top: float
    right: float
    bottom: float


LETTER = 7.2  # mean width of a letter of a label, in the drawing's units
WIDE = Frame("wide", 920.0, 356.0, 60.0, 32.0, 900.0, 304.0)
NARROW = Frame("narrow", 360.0, 340.0, 44.0, 32.0, 348.0, 290.0)


def scatter(report: Report, frame: Frame) -> Scatter | None:
    """The candidates that were measured; None when fewer than two were, which a table says better.

    The original stands at latency 1 and no loss. Two frames are drawn, one for each kind of
    screen, because text in a drawing that shrinks becomes unreadable.
    """
    rows = [c for c in report.candidates if c.latency_ratio is not None and c.quality is not None]
    metrics = {c.quality_metric for c in rows}
    if len(rows) < 2 or len(metrics) != 1 or None in metrics:
        return None
    metric = str(metrics.pop())
    limits = {str(j.get("metric")): j.get("limit") for j in report.judgements}
    origin = BUDGET_KINDS[metric].origin if metric in BUDGET_KINDS else 0.0
    x_limit, y_limit = _float(limits.get("latency_ratio")), _float(limits.get(metric))
    xs = [0.0, 1.0, *(c.latency_ratio or 0.0 for c in rows)]
    ys = [origin, *(c.quality or 0.0 for c in rows), *([] if y_limit is None else [y_limit])]
    # One candidate that is far off must not squeeze all others into a corner.
    if y_limit is not None:
        cap = origin + 3 * (y_limit - origin)
        ys = [min(y, cap) if cap > origin else max(y, cap) for y in ys]
    x_span, y_span = _span(xs), _span(ys)
    flip = metric != "embedding_cosine"  # loss grows downwards, so that better is up

    def x_of(value: float) -> float:
        return round(frame.left + (frame.right - frame.left) * _share(value, x_span), 1)

    def y_of(value: float) -> float:
        share = _share(value, y_span)
        return round(frame.top + (frame.bottom - frame.top) * (share if flip else 1 - share), 1)

    dots = []
    for c in rows:
        quality = c.quality or 0.0
        off = not y_span[0] <= quality <= y_span[1]
        y = min(y_of(quality), frame.bottom - 12)  # clear of the axis and its numbers
        dots.append(_dot(c, x_of(c.latency_ratio or 0.0), y, metric, off))
    dots.append(Dot(x_of(1.0), y_of(origin), 7.0, "original", "original", "", 0, "start"))
    return Scatter(
        frame,
        tuple(Tick(x_of(v), f"{v:g}×") for v in axis_ticks(x_span)),
        tuple(Tick(y_of(v), f"{v:g}") for v in axis_ticks(y_span)),
        None if x_limit is None else x_of(x_limit),
        None if y_limit is None else y_of(y_limit),
        _without_overlap(dots, frame),
        {
            "accuracy_drop_points": "accuracy lost, points",
            "perplexity_ratio": "perplexity ratio",
            "embedding_cosine": "cosine to the original",
        }.get(metric, plain(metric)),
    )


def _dot(row: CandidateRow, x: float, y: float, metric: str, off: bool) -> Dot:
    """The dot of a candidate; its area is its size on disk. `off`: it lies outside the axis."""
    share = row.size_ratio if row.size_ratio is not None else 0.25
    radius = round(min(max(7.0 * math.sqrt(max(share, 0.0)) * 1.6, 3.5), 11.0), 1)
    hint = (
        f"{plain(row.name)}: latency {with_unit(row.latency_ratio, '×')}, "
        f"{measured(metric, row.quality)}, size {with_unit(row.size_ratio, '×')}"
    )
    name = f"{plain(row.name)} ↓ {measured(metric, row.quality)}" if off else plain(row.name)
    return Dot(x, y, radius, name, row.status, hint, 0, "start")


def _without_overlap(dots: Sequence[Dot], frame: Frame) -> tuple[Dot, ...]:
    """Labels beside their dots, moved as little as keeps them clear of other labels and dots."""
    boxes = [(d.x - d.radius, d.y - d.radius, d.x + d.radius, d.y + d.radius) for d in dots]
    placed = []
    for dot in sorted(dots, key=lambda d: (d.y, d.x)):
        width, gap = LETTER * len(dot.name), dot.radius + 6
        lefts = {"start": dot.x + gap, "end": dot.x - gap - width}
        sides = [s for s, x in lefts.items() if frame.left < x and x + width < frame.right]
        if not sides:
            sides = ["start" if dot.x < (frame.left + frame.right) / 2 else "end"]
        steps = sorted(range(-60, 61, 3), key=lambda step: (abs(step), -step))
        places = [
            (side, y)
            for y in (dot.y + step for step in steps)
            if y == dot.y or frame.top + 8 <= y <= frame.bottom - 12
            for side in sides
        ]
        side, y = next(
            (
                (side, y)
                for side, y in places
                if not any(
                    lefts[side] < b[2]
                    and b[0] < lefts[side] + width
                    and y - 7 < b[3]
                    and b[1] < y + 7
                    for b in boxes
                )
            ),
            places[0],
        )
        boxes.append((lefts[side], y - 7, lefts[side] + width, y + 7))
        placed.append(replace(dot, label_y=round(y, 1), label_side=side))
    return tuple(placed)


@dataclass(frozen=True)
class Series:
    """A small line drawing in a box of 100 × 40: its points, and what to say about its ends."""

    points: str
    first: str
    best: str
    best_x: float
    best_y: float
    best_step: str


def series(values: Sequence[tuple[float, float]]) -> Series | None:
    """Loss over steps; None for fewer than two looks."""
    if len(values) < 2:
        return None
    steps, losses = [v[0] for v in values], [v[1] for v in values]
    x_span, y_span = (min(steps), max(steps) or 1.0), (min(losses), max(losses))
    height = (y_span[1] - y_span[0]) or 1.0
    points = [
        (round(100 * _share(step, x_span), 1), round(36 - 32 * (loss - y_span[0]) / height, 1))
        for step, loss in values
    ]
    best = losses.index(min(losses))
    return Series(
        " ".join(f"{x},{y}" for x, y in points),
        number(losses[0]),
        number(losses[best]),
        points[best][0],
        points[best][1],
        number(int(steps[best])),
    )


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or 0.05 * max(abs(high), 1.0)
    return low - pad, high + pad


def _share(value: float, span: tuple[float, float]) -> float:
    return min(max((value - span[0]) / (span[1] - span[0]), 0.0), 1.0)


def axis_ticks(span: tuple[float, float]) -> list[float]:
    """Round numbers inside a span, at most six."""
    step = 10.0 ** math.floor(math.log10(span[1] - span[0]))
    for factor in (0.1, 0.2, 0.5, 1.0, 2.0):
        first = math.ceil(span[0] / (step * factor))
        count = math.floor(span[1] / (step * factor)) - first + 1
        if count <= 6:
            return [round((first + i) * step * factor, 10) + 0.0 for i in range(count)]
    return []


def _float(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and number(value) != "–" else None
