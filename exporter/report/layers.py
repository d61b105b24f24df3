"""Geometry of the drawing of layers: what format each one runs in, and how large it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from exporter.report.wording import plain

# Formats that have a colour of their own.
FORMATS = ("int2", "int4", "int8", "float16", "float32")


@dataclass(frozen=True)
class Bar:
    """One layer in the precision drawing; place, width and height in per cent."""

    place: float
    width: float
    height: float
    format: str
    hint: str


@dataclass(frozen=True)
class Precision:
    """Every layer in the order it runs: colour is the format, height the size.

    Attributes:
        formats: format -> layers in it and their share of the bytes, most bytes first.
    """

    bars: tuple[Bar, ...]
    formats: tuple[tuple[str, int, str], ...]


def precision(audit: Mapping[str, Any]) -> Precision | None:
    """The layers of the audit; None when it names none. Heights go by the root of the bytes."""
    layers = [
        (str(x["name"]), str(x["op"]), str(x["format"]), int(x["size_bytes"]))
        for x in audit.get("layers") or ()
    ]
    if not layers:
        return None
    largest = max(size for *_, size in layers) or 1
    total = sum(size for *_, size in layers) or 1
    step = 100 / len(layers)
    bars = tuple(
        Bar(
            round(i * step, 3),
            round(step * 0.82, 3),
            round(max(100 * math.sqrt(size / largest), 4.0), 1),
            plain(form) if plain(form) in FORMATS else "other",
            f"{plain(name)}: {plain(op)}, {plain(form)}, {size / 1024:,.0f} KiB",
        )
        for i, (name, op, form, size) in enumerate(layers)
    )
    sums: dict[str, tuple[int, int]] = {}
    for _, _, form, size in layers:
        count, bytes_ = sums.get(form, (0, 0))
        sums[form] = (count + 1, bytes_ + size)
    ranked = sorted(sums.items(), key=lambda item: -item[1][1])
    return Precision(
        bars,
        tuple((plain(f), count, f"{100 * size / total:.0f} %") for f, (count, size) in ranked),
    )
