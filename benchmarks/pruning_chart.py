"""The plot of `benchmarks/pruning.py`: perplexity ratio against the FLOPs that are left."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pruning_cuts import Row

WIDTH, HEIGHT, MARGIN, LEGEND = 640, 380, 48, 150
HIGHEST = 1.5  # ratios beyond it are drawn at the edge
COLOURS = {
    "ffn": "#1b6ca8",
    "heads": "#b8860b",
    "ffn+heads": "#2e8b57",
    "hidden": "#8e44ad",
    "layers": "#c0392b",
}


def draw(rows: Sequence[Row], limits: Sequence[float]) -> str:
    """An SVG: for each part the best one-shot cut at each size (line), and distilled (dashes).

    A stroke above a dot reaches to the bound.
    """
    least = min((row.flops for row in rows), default=0.5)
    left, right = MARGIN, WIDTH - LEGEND

    def x(flops: float) -> float:
        return right - (flops - least) / max(1 - least, 1e-9) * (right - left)

    def y(ratio: float) -> float:
        low = 0.98
        return (
            HEIGHT - MARGIN - (min(ratio, HIGHEST) - low) / (HIGHEST - low) * (HEIGHT - 2 * MARGIN)
        )

    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        _text(MARGIN, 24, "Perplexity over the original's, against the share of FLOPs left"),
    ]
    for ratio in (1.0, 1.1, 1.2, 1.3, 1.4, HIGHEST):
        label = f"≥ {ratio:g}" if ratio == HIGHEST else f"{ratio:g}"
        drawn.append(
            f'<path d="M{left} {y(ratio):.1f}H{right}" stroke="#ccc"/>'
            + _text(left - 6, y(ratio) + 4, label, "end")
        )
    for limit in limits:
        drawn.append(
            f'<path d="M{left} {y(limit):.1f}H{right}" stroke="#999" stroke-dasharray="4 3"/>'
            + _text(right + 4, y(limit) + 4, f"{limit:g}")
        )
    for tenth in range(10, int(least * 10), -1):
        drawn.append(_text(x(tenth / 10), HEIGHT - MARGIN + 18, f"{tenth / 10:g}", "middle"))
    line = 0
    for part, colour in COLOURS.items():
        for distilled in (False, True):
            best = _best(row for row in rows if (row.part, row.distilled) == (part, distilled))
            if not best:
                continue
            dash = ' stroke-dasharray="6 4"' if distilled else ""
            points = " ".join(f"{x(f):.1f},{y(r):.1f}" for f, r, _ in [(1.0, 1.0, 1.0), *best])
            drawn.append(f'<polyline points="{points}" fill="none" stroke="{colour}"{dash}/>')
            for flops, ratio, high in best:
                drawn.append(
                    f'<circle cx="{x(flops):.1f}" cy="{y(ratio):.1f}" r="3" fill="{colour}"/>'
                    f'<path d="M{x(flops):.1f} {y(ratio):.1f}V{y(high):.1f}" stroke="{colour}"/>'
                )
            at = MARGIN + 18 * line
            line += 1
            name = escape(f"{part}{', distilled' * distilled}")
            drawn.append(
                f'<path d="M{right + 12} {at}h22" stroke="{colour}"{dash}/>'
                + _text(right + 40, at + 4, name)
            )
    return "\n".join([*drawn, "</svg>", ""])


def _best(rows: Iterable[Row]) -> list[tuple[float, float, float]]:
    """(FLOPs, ratio, bound) of the best criterion at each size, small cuts first."""
    found: dict[float, tuple[float, float, float]] = {}
    for row in rows:
        if row.flops not in found or row.ratio < found[row.flops][1]:
            found[row.flops] = (row.flops, row.ratio, row.high)
    return sorted(found.values(), reverse=True)


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#333">{escape(text)}</text>'
