"""Facts about a run as label and value, whatever their nesting, and the figures that head it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from exporter.report.document import Report
from exporter.report.rows import budget_rows
from exporter.report.wording import ABSENT, number, plain

_UNITS = {"mib": "MiB", "ms": "ms", "bytes": "bytes", "points": "points"}
_NAMES = {
    "isa": "ISA",
    "mhz": "MHz",
    "os": "OS",
    "cpu": "CPU",
    "sha256": "SHA-256",
    "ffn": "feed-forward",
    "p95": "p95",
    "onnxruntime": "onnxruntime",
}
SHORT_HASH = 12
TOLD_BY_EXPLAIN = ("costs", "by_round")  # of what was removed: too long for a list of facts


@dataclass(frozen=True)
class Fact:
    """One fact; `full` is what a shortened text stands for, else ""."""

    label: str
    text: str
    full: str = ""


@dataclass(frozen=True)
class Headline:
    """One large figure with a line below that explains it."""

    figure: str
    what: str
    detail: str


def facts(mapping: Mapping[str, Any], *, without: tuple[str, ...] = ()) -> tuple[Fact, ...]:
    """A mapping as facts; what is empty is left out, what is nested gets both names."""
    return tuple(_flat({k: v for k, v in mapping.items() if k not in without}, ""))


def _flat(mapping: Mapping[str, Any], above: str) -> Iterator[Fact]:
    for key, value in mapping.items():
        if value is None or value == "" or value == [] or value == {}:
            continue
        label, unit = _label(str(key))
        if isinstance(value, Mapping):
            if {"before", "after"} <= set(value):
                yield Fact(above + label, f"{_text(value['before'])} → {_text(value['after'])}")
                value = {k: v for k, v in value.items() if k not in ("before", "after")}
            yield from _flat(value, f"{above}{label}, ")
            continue
        text = _text(value)
        shown = f"{text} {unit}" if unit and text != ABSENT else text
        if re.fullmatch(r"[0-9a-f]{64}", text):
            yield Fact(above + label, text[:SHORT_HASH] + "…", text)
        else:
            yield Fact(above + label, shown)


def _label(key: str) -> tuple[str, str]:
    """A key as words, and the unit that its name ends with."""
    words = plain(key).replace("-", "_").split("_")
    unit = _UNITS.get(words[-1], "") if len(words) > 1 else ""
    return " ".join(_NAMES.get(w, w) for w in (words[:-1] if unit else words)), unit


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and 1e-4 <= abs(value) < 1000:
        return f"{value:.4g}".replace("-", "−")
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, list | tuple):
        return ", ".join(_text(v) for v in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{_label(str(k))[0]} {_text(v)}" for k, v in value.items())
    return plain(value)


def headlines(report: Report) -> tuple[Headline, ...]:
    """What a reader wants to know first: how much faster, how much smaller, at what loss."""
    rows = {row.metric: row for row in budget_rows(report)}
    found = {str(j.get("metric")): j for j in report.judgements}
    made = []
    latency = _ratio(found.get("latency_ratio", {}).get("measured"))
    if latency:
        row = rows["latency_ratio"]
        what = "faster" if latency > 1 else "as fast"
        # the machine that timed it is not always one of the target's kind
        stand_in = report.target.get("isa") != report.environment.get("isa")
        what += " on this machine" if stand_in else ""
        made.append(Headline(f"{latency:.1f}×", what, f"{row.reference} → {row.candidate}"))
    counted = found.get("instruction_ratio", {})
    if isinstance(counted.get("measured"), int | float):
        row = rows["instruction_ratio"]
        sides = f"{row.reference} → {row.candidate}"
        made.append(Headline(row.measured, "the instructions on its CPU", sides))
    sizes = [("disk_size_ratio", "smaller"), ("download_size_ratio", "less download")]
    for metric, what in sizes[: 3 - len(made)]:
        share = _ratio(found.get(metric, {}).get("measured"))
        if share:
            row = rows[metric]
            detail = f"{row.reference} → {row.candidate}"
            made.append(Headline(f"{share:.1f}×", what if share > 1 else "the size", detail))
    for metric, what in (
        ("accuracy_drop_points", "accuracy lost"),
        ("perplexity_ratio", "the perplexity"),
        ("embedding_cosine", "cosine to the original"),
    ):
        if metric in rows:
            row = rows[metric]
            sides = f"{row.reference} → {row.candidate}"
            detail = "mean over test data" if metric == "embedding_cosine" else sides
            made.append(Headline(row.measured.replace("points", "pt"), what, detail))
    return tuple(made[:4])


def _ratio(value: Any) -> float | None:
    """How many times less: 0.25 -> 4."""
    return 1 / value if isinstance(value, int | float) and value > 0 else None
