"""report.html: one file that needs nothing else, for people.

Everything that comes from users is escaped by the template engine; no script runs, and a
content security policy says so to the browser.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from exporter.budget import BUDGET_KINDS, KL_TASKS
from exporter.report.charts import NARROW, WIDE, scatter, series, strip
from exporter.report.devices import device_table
from exporter.report.distributions import NARROW as NARROW_TIMES
from exporter.report.distributions import WIDE as WIDE_TIMES
from exporter.report.distributions import distributions
from exporter.report.document import Report
from exporter.report.facts import TOLD_BY_EXPLAIN, facts, headlines
from exporter.report.layers import FORMATS, precision
from exporter.report.rows import budget_rows
from exporter.report.support import LISTS, support_rows
from exporter.report.wording import VERDICT_MARKS, measured, number, plain, with_unit

TEMPLATES = Path(__file__).resolve().parent / "templates"


def environment() -> Any:
    """What renders a template: all that comes from users is escaped, absent names are errors."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["plain"] = plain
    made.filters["number"] = number
    made.filters["glued"] = _glued
    return made


def to_html(report: Report) -> str:
    """The report as one HTML document."""
    template = environment().get_template("report.html")
    rows = budget_rows(report)
    language = report.model.get("task") == "text-generation"
    slice_metric = f"worst_slice_{'perplexity_ratio' if language else 'drop_points'}"
    drawn = (scatter(report, WIDE), scatter(report, NARROW))
    times = (distributions(report, WIDE_TIMES), distributions(report, NARROW_TIMES))
    text: str = template.render(
        report=report,
        mark=VERDICT_MARKS[report.verdict],
        marks=VERDICT_MARKS,
        setting=_setting(report),
        headlines=headlines(report),
        budgets=[(row, strip(row)) for row in rows],
        times=[t for t in times if t is not None],
        passed=not any(c.status == "chosen" and c.reason for c in report.candidates),
        devices=device_table(report.devices),
        counted=any(row.instruction_ratio is not None for row in report.candidates),
        scatters=[s for s in drawn if s is not None],
        importance=_importance(report),
        removed=_removed(report.pruning or {}, str(report.model.get("task"))),
        layers=precision(report.audit or {}),
        support=support_rows(report.support),
        lists=LISTS if (report.support or {}).get("mobile") else "",
        formats=FORMATS,
        learning=series(_losses(report)),
        slice_metric=slice_metric,
        slice_loss="Perplexity ratio" if "ratio" in slice_metric else "Accuracy drop",
        shown=_shown,
        titles={metric: kind.title for metric, kind in BUDGET_KINDS.items()},
        facts=facts,
        measured=measured,
        with_unit=with_unit,
        parity_cases=len((report.parity or {}).get("cases") or ()),
        kernels=_kernels(report.audit or {}),
    )
    return text


def _setting(report: Report) -> str:
    """What was judged, for what, where."""
    task, target = report.model.get("task"), report.target.get("name")
    cpu = report.environment.get("cpu")
    parts = (task, f"for {target}" if target else "", f"judged on {cpu}" if cpu else "")
    return plain(" ".join(str(part) for part in parts if part))


def _glued(text: str) -> str:
    """Keep a sign and its number, and a number and its unit, on one line."""
    return re.sub(r"(?<=[≤≥=]) | (?=(?:points?|ms|MiB|%)\b)", "\u00a0", plain(text))


def _shown(answer: str) -> str:
    """An answer, or the token that is only space made visible."""
    return plain(answer) or repr(answer)[1:-1].replace(" ", "␣")


def _importance(report: Report) -> list[tuple[float, bool]]:
    """Importance of each layer and whether it stayed."""
    layers = (report.pruning or {}).get("layers")
    if not isinstance(layers, dict) or not isinstance(layers.get("importance"), list):
        return []
    kept = set(layers.get("kept") or ())
    return [(float(v), i in kept) for i, v in enumerate(layers["importance"])]


def _removed(pruning: dict[str, Any], task: str) -> dict[str, Any]:
    """What was removed, without what is drawn instead of listed."""
    if isinstance(pruning.get("divergence"), int | float):
        # the task's distillation loss, which is a KL divergence where classes or tokens are told
        what, unit = ("KL", "nats") if task in KL_TASKS else ("distillation loss", "")
        told = with_unit(pruning["divergence"], unit)
        pruning = {**pruning, "divergence": f"{what} {told} to the original, before recovery"}
    pruning = {k: v for k, v in pruning.items() if k not in TOLD_BY_EXPLAIN}
    layers = pruning.get("layers")
    if not isinstance(layers, dict):
        return pruning
    return {**pruning, "layers": {k: v for k, v in layers.items() if k != "importance"}}


def _losses(report: Report) -> list[tuple[float, float]]:
    """(step, development loss) of each look during recovery."""
    history = (report.recovery or {}).get("history") or ()
    return [
        (float(look["step"]), float(look["development_loss"]))
        for look in history
        if number(look.get("step")) != "–" and number(look.get("development_loss")) != "–"
    ]


def _kernels(audit: dict[str, Any]) -> list[tuple[str, int]]:
    """Operators of the graph that runs, most frequent first."""
    counts = audit.get("op_counts")
    if not isinstance(counts, dict):
        return []
    return sorted(((str(k), int(v)) for k, v in counts.items()), key=lambda kv: (-kv[1], kv[0]))
