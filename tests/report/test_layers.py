"""The drawing of layers: one bar a layer, coloured by format and as high as its size says."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from exporter.report.html import to_html
from exporter.report.layers import precision
from tests.report import samples


def _audit(*layers: tuple[str, int]) -> dict[str, Any]:
    return {
        "layers": [
            {"name": f"/layer.{i}", "op": "MatMul", "format": form, "size_bytes": size}
            for i, (form, size) in enumerate(layers)
        ]
    }


MIXED = _audit(("float32", 10_000), ("int8", 40_000), ("int4", 2_500), ("int8", 10_000), ("q9", 0))


def test_one_bar_a_layer_in_the_order_they_run() -> None:
    drawn = precision(MIXED)
    assert drawn is not None
    assert [bar.format for bar in drawn.bars] == ["float32", "int8", "int4", "int8", "other"]
    # heights go by the root of the size, and even the smallest is seen
    assert [bar.height for bar in drawn.bars] == [50.0, 100.0, 25.0, 50.0, 4.0]
    assert [bar.place for bar in drawn.bars] == [0, 20, 40, 60, 80]
    assert all(0 < bar.width < 20 for bar in drawn.bars)
    assert drawn.bars[2].hint == "/layer.2: MatMul, int4, 2 KiB"


def test_formats_are_counted_with_their_share_of_the_bytes() -> None:
    drawn = precision(MIXED)
    assert drawn is not None
    assert drawn.formats == (
        ("int8", 2, "80 %"),
        ("float32", 1, "16 %"),
        ("int4", 1, "4 %"),
        ("q9", 1, "0 %"),
    )


@pytest.mark.parametrize("audit", [{}, {"layers": []}, {"layers": None}])
def test_without_layers_there_is_no_drawing(audit: dict[str, Any]) -> None:
    assert precision(audit) is None
    page = to_html(replace(samples.passing(), audit=audit))
    assert '<svg class="precision"' not in page


def test_the_page_draws_every_bar() -> None:
    page = to_html(replace(samples.passing(), audit=MIXED))
    (drawing,) = re.findall(r'<svg class="precision".*?<figcaption', page, re.DOTALL)
    classes = re.findall(r'<rect[^>]*class="(\w+)"', drawing)
    assert classes == ["float32", "int8", "int4", "int8", "other"]
    assert "2 layers int8, 80 % of the bytes" in drawing
