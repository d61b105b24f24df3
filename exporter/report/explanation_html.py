"""An explanation as one HTML file, its costs drawn as bars."""

from __future__ import annotations

from dataclasses import dataclass

from exporter.report.charts import series
from exporter.report.explanation import Explanation
from exporter.report.explanation_text import pictured, values_of
from exporter.report.html import environment
from exporter.report.wording import VERDICT_MARKS, with_unit

THINNEST = 0.4  # per cent of the width, so that a cost above nothing is seen


@dataclass(frozen=True)
class Bar:
    """What one part costs; `width` in per cent of the largest of all."""

    label: str
    width: float
    figure: str


def explanation_to_html(told: Explanation) -> str:
    """The explanation as one HTML document; no script runs in it."""
    text: str = (
        environment()
        .get_template("explanation.html")
        .render(
            told=told,
            mark=VERDICT_MARKS[told.verdict],
            pictures=pictures(told),
            learning=series([(float(step), loss) for step, loss in told.losses]),
        )
    )
    return text


def pictures(told: Explanation) -> list[tuple[str, list[Bar]]]:
    """Title and bars of each kind of part in each round, all on one scale."""
    if not told.costs:
        return []
    largest = max((value for value in values_of(told) if value is not None), default=0.0)
    return [
        (title, [Bar(label, _width(v, largest), with_unit(v, told.unit)) for label, v in rows])
        for title, rows in pictured(told)
    ]


def _width(value: float | None, largest: float) -> float:
    if value is None or value <= 0 or largest <= 0:
        return 0.0
    return round(max(100 * value / largest, THINNEST), 2)
