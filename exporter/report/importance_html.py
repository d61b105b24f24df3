"""Importance as one HTML file: heat maps of what matters, and criteria against ablation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporter.report.html import environment
from exporter.report.importance import ORACLE, ImportanceReport, KindScores
from exporter.report.wording import number

CELLS = 64  # columns of a heat map; more units a layer are drawn sorted, in so many shares
WIDTH, ROW, LEFT = 920.0, 20.0, 84.0
PLOT = 200.0  # side of a scatter plot, its margins included
EDGE = 26.0


@dataclass(frozen=True)
class Cell:
    """One unit, or the mean of neighbours in rank; places in the drawing's units."""

    x: float
    y: float
    width: float
    opacity: float
    hint: str


@dataclass(frozen=True)
class HeatMap:
    """Layers from top to bottom, units from left to right.

    Attributes:
        sorted: units lie by rank, not by number.
        rows: y and label of each layer.
    """

    kind: str
    criterion: str
    height: float
    sorted: bool
    rows: tuple[tuple[float, str], ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Plot:
    """A criterion against ablation, both as ranks: units on the diagonal are ranked alike.

    Attributes:
        dots: x, y and name of each ablated unit.
    """

    criterion: str
    spearman: str
    dots: tuple[tuple[float, float, str], ...]


def importance_to_html(report: ImportanceReport) -> str:
    """The report as one HTML document; no script runs in it."""
    drawn = [(kind, heat_map(kind), tuple(_plots(kind))) for kind in report.kinds]
    template = environment().get_template("importance.html")
    text: str = template.render(
        report=report, kinds=drawn, plot=PLOT, edge=EDGE, width=WIDTH, left=LEFT, row=ROW
    )
    return text


def heat_map(kind: KindScores) -> HeatMap:
    """Importance of every unit, layer by layer; in one row where kinds lie in no layer."""
    values = kind.known(kind.shown)
    layers = list(dict.fromkeys(kind.layers))
    if kind.kind == "layer":
        layers = [None]  # one row of all says it better
    cells: list[Cell] = []
    rows = []
    many = False
    for number_, layer in enumerate(layers):
        index = [i for i, one in enumerate(kind.layers) if layer is None or one == layer]
        y = number_ * ROW
        rows.append((y, "" if layer is None else f"layer {layer}"))
        groups = [[i] for i in index]
        if len(index) > CELLS:
            many = True
            ranked = sorted(index, key=lambda i: -values[i])
            groups = [list(map(int, part)) for part in np.array_split(ranked, CELLS)]
        width = (WIDTH - LEFT) / len(groups)
        for place, members in enumerate(groups):
            mean = float(np.mean(values[members]))
            name = kind.units[members[0]] if len(members) == 1 else f"{len(members)} units"
            hint = f"{name}: {number(mean)}"
            x = round(LEFT + place * width, 2)
            cells.append(Cell(x, y, round(width, 2), round(min(max(mean, 0.0), 1.0), 3), hint))
    height = len(layers) * ROW
    return HeatMap(kind.kind, kind.shown, height, many, tuple(rows), tuple(cells))


def _plots(kind: KindScores) -> Iterator[Plot]:
    if ORACLE not in kind.importance:
        return
    truth = kind.known(ORACLE)
    index = np.flatnonzero(np.isfinite(truth))
    for criterion, r in kind.spearman.items():
        if r is None:
            continue
        x, y = _ranks(kind.known(criterion)[index]), _ranks(truth[index])
        dots = tuple(
            (_place(a), round(PLOT - _place(b), 1), kind.units[i])
            for a, b, i in zip(x, y, index, strict=True)
        )
        yield Plot(criterion, f"{r:+.2f}".replace("-", "−"), dots)


def _ranks(values: NDArray[np.float64]) -> list[float]:
    """Ranks from 0 to 1; ties share their mean."""
    from scipy.stats import rankdata

    ranks = rankdata(values)
    return [float((r - 1) / max(len(ranks) - 1, 1)) for r in ranks]


def _place(share: float) -> float:
    return round(EDGE + share * (PLOT - 2 * EDGE), 1)
