"""Where the files run, in words; whatever stands in a report is shown and obeyed by nobody."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from exporter.report.html import to_html
from exporter.report.markdown import to_markdown
from exporter.report.support import support_rows
from tests.report import samples

INFO = {"nodes": 40, "supported_nodes": 30, "partitions": 1, "recommendation": "maybe"}
SUPPORT: dict[str, Any] = {
    "runtime_version": "1.23",
    "installed": "1.32.0",
    "opsets": {"ai.onnx": 20, "com.microsoft": 1},
    "ir_version": 10,
    "oldest": "1.22",
    "needs": [
        {"operator": "com.microsoft:MatMulNBits", "what": "bits = 8", "since": 22, "remedy": ""},
        {"operator": "graph", "what": "IR version 10", "since": 18, "remedy": ""},
    ],
    "ort": {
        "platform": "arm",
        "size_bytes": 1 << 20,
        "operators": 7,
        "difference": 2e-6,
        "oldest": None,
        "needs": [{"operator": "my.own:<b>", "what": "operator", "since": None, "remedy": ""}],
    },
    "mobile": {
        "nnapi": {
            "as_is": {**INFO, "recommendation": "no", "unsupported": []},
            "fixed_shapes": {**INFO, "unsupported": ["ai.onnx:Gelu", "com.microsoft:QGemm"]},
        },
        "coreml_mlprogram": {"reason": "shapes could not be inferred: <i>"},
    },
}


def test_rows_say_since_when_and_why() -> None:
    rows = {row.where: row for row in support_rows(SUPPORT)}
    onnx = rows["onnxruntime, model.onnx"]
    assert onnx.runs == "1.22 and later"
    assert "opset 20, IR version 10" in onnx.why
    assert "1.21 lacks com.microsoft:MatMulNBits (bits = 8)" in onnx.why
    assert "the profile names 1.23; 1.32.0 ran it here" in onnx.why
    ort = rows["onnxruntime, model.ort"]
    assert ort.runs == "no release known"
    assert "no release takes my.own:<b>" in ort.why
    nnapi = rows["NNAPI (Android)"]
    assert nnapi.runs == "no; with fixed shapes maybe"
    assert "30 of 40 nodes in 1 piece" in nnapi.why
    assert "not taken: Gelu, com.microsoft:QGemm" in nnapi.why
    assert rows["CoreML MLProgram (iOS)"].runs == "unknown"
    assert support_rows(None) == ()


def test_pages_show_it_escaped() -> None:
    report = replace(samples.passing(), support=SUPPORT)
    html, markdown = to_html(report), to_markdown(report)
    assert "Runs where" in html
    assert "Runs where" in markdown
    assert "&lt;b&gt;" in html
    assert "<i>" not in html.split("Runs where")[1].split("</section>")[0]
    assert "no phone was asked" in html
    without = replace(report, support={**SUPPORT, "mobile": None})
    assert "no phone was asked" not in to_html(without)
    assert "Runs where" not in to_html(samples.passing())


@pytest.mark.parametrize(
    "support",
    [
        {"oldest": "1.18"},
        {"needs": ["x", None, {"since": None}], "ort": [], "mobile": 3},
        {"opsets": [], "needs": [{"operator": 3, "what": [], "since": "x"}], "ort": {}},
        {"mobile": {"nnapi": {"as_is": None}, "coreml_mlprogram": []}},
    ],
)
def test_whatever_stands_there_is_shown(support: dict[str, Any]) -> None:
    assert to_html(replace(samples.passing(), support=support))
