"""What devices told, as a table: device × metric. The same cells in every format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exporter.report.wording import ABSENT, number, plain, with_unit

METRICS = (
    "runs",
    "required",
    "float32 reference differs by",
    "flips from the reference",
    "top 5 shared",
    "cosine to the reference",
    "score",
    "cost of the workload",
    "cost, ratio",
    "cost of loading",
    "memory",
)
# What stands in the first row for each status of a reading.
_RUNS = {"ran": "yes", "failed": "no", "unfinished": "unfinished", "missing": "not asked"}


@dataclass(frozen=True)
class DeviceTable:
    """Devices side by side.

    Attributes:
        devices: their names, one a column.
        rows: (metric, one cell a device); a metric that no device tells is left out.
        notes: (device, what else there is to say of it).
    """

    devices: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    notes: tuple[tuple[str, str], ...]


def device_table(readings: Sequence[Mapping[str, Any]]) -> DeviceTable:
    """The readings of a report as a table: device × metric."""
    names = tuple(plain(r.get("device")) for r in readings)
    columns = [_cells(reading) for reading in readings]
    rows = tuple(
        (metric, tuple(cells))
        for metric, *cells in zip(METRICS, *columns, strict=True)
        if columns and set(cells) != {ABSENT}
    )
    notes = [(plain(r.get("device")), plain(_note(r))) for r in readings]
    return DeviceTable(names, rows, tuple((name, note) for name, note in notes if note))


def _cells(reading: Mapping[str, Any]) -> tuple[str, ...]:
    """One device in words, cell by cell as METRICS names them."""
    runs = _RUNS.get(str(reading.get("status")), "?")
    required = "yes" if reading.get("required") else ABSENT
    if reading.get("status") != "ran":
        return (runs, required, *[ABSENT] * (len(METRICS) - 2))
    here, there = _part(reading, "here"), _part(reading, "there")
    before, after = _part(reading, "reference"), _part(reading, "candidate")
    unit, ratio = reading.get("unit"), None
    if after.get("answer") is not None and before.get("answer"):
        ratio = after["answer"] / before["answer"]
    return (
        runs,
        required,
        number(reading.get("float_difference"), 2),
        _both(_flips(there), _flips(here)),
        _both(_percent(there.get("top_k")), _percent(here.get("top_k"))),
        _both(_fixed(there.get("cosine")), _fixed(here.get("cosine"))),
        _both(_score(there), _score(here)),
        cost(after.get("answer"), unit),
        with_unit(ratio, "×") + _between(reading),
        cost(after.get("load"), unit),
        _memory(reading, after),
    )


def _part(reading: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = reading.get(name)
    return found if isinstance(found, Mapping) else {}


def _both(there: str, here: str) -> str:
    """A figure of the device and the same here: what is judged is the difference."""
    if here == ABSENT:
        return there
    return f"{there}, as here" if there == here else f"{there}, here {here}"


def _between(reading: Mapping[str, Any]) -> str:
    low, high = reading.get("ratio_low"), reading.get("ratio_high")
    return "" if low is None or high is None else f", {number(low)} to {number(high)}"


def _flips(agreement: Mapping[str, Any]) -> str:
    flips, decisions = agreement.get("flips"), agreement.get("decisions")
    return ABSENT if flips is None else f"{flips:,} of {decisions:,}"


def _percent(share: Any) -> str:
    return ABSENT if share is None else f"{100 * share:.1f} %"


def _fixed(value: Any) -> str:
    return ABSENT if value is None else f"{value:.4f}"


def _score(agreement: Mapping[str, Any]) -> str:
    scores = agreement.get("scores") or {}
    if not scores:
        return ABSENT
    name, value = next(iter(scores.items()))
    figure = number(value) if name == "perplexity" else _percent(value)
    return f"{plain(name).replace('_', ' ')} {figure}"


def cost(value: Any, unit: Any) -> str:
    """A cost in its own unit: `213 M instructions`, `12.3 ms`, `0.41 guest s`."""
    if value is None or unit is None:
        return ABSENT
    if unit == "instructions":
        return f"{number(value / 1e6)} M instructions"
    return with_unit(value, {"guest_s": "guest s", "throttled_ms": "throttled ms"}.get(unit, unit))


def _memory(reading: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    smallest = reading.get("smallest_mib")
    if isinstance(smallest, Mapping):
        size = smallest.get("candidate")
        return "more than allowed" if size is None else f"{size} MiB in all"
    for name, what in (("peak_mib", "peak"), ("heap_mib", "heap")):
        if after.get(name) is not None:
            return f"{number(after[name])} MiB {what}"
    return ABSENT


def _note(reading: Mapping[str, Any]) -> str:
    if reading.get("status") != "ran":
        return str(reading.get("reason") or "")
    notes = []
    classes = _part(_part(reading, "candidate"), "classes")
    if classes.get("all"):
        shares = [
            f"{plain(name).replace('_', ' ')} {100 * count / classes['all']:.1f} %"
            for name, count in classes.items()
            if name != "all"
        ]
        notes.append(f"of the instructions: {', '.join(shares)}" if shares else "")
    same = reading.get("same_tokens")
    if same is not None:
        notes.append(f"{100 * same:.0f} % of the tokens it writes are those written here")
    if reading.get("float_reason"):
        notes.append(f"the float32 reference did not run: {reading['float_reason']}")
    return "; ".join(note for note in notes if note)


def run_to_text(run: Mapping[str, Any]) -> str:
    """What `exporter run` found, for people."""
    device, figures = run["device"], run["cost"]
    unit = figures["unit"]
    lines = [plain(f"{device['name']}  {device['title']}, onnxruntime {run['runtime']}")]
    for answer in run["answers"]:
        if "labels" in answer:
            told = ", ".join(
                f"{name} {100 * share:.1f} %" for name, share in answer["labels"].items()
            )
        elif "tokens" in answer:
            told = answer.get("text") or " ".join(map(str, answer["tokens"]))
        else:
            told = f"{answer['output']} {answer['shape']}: {answer['first']} ..."
        lines.append(f"  answer      {plain(told)}")
    if run["difference_to_here"] is not None:
        lines.append(f"  difference  {number(run['difference_to_here'], 3)} to the outputs here")
    if run["same_as_here"] is not None:
        written = any("tokens" in answer for answer in run["answers"])
        what = "tokens are those written here" if written else "answers are those here"
        lines.append(f"  same        {_percent(run['same_as_here'])} of the {what}")
    for risk in run["facts"].get("saturation", ()):
        lines.append(f"  saturates   perhaps {plain(risk)}")
    for phase, value in figures["phases"].items():
        each = " a token" if phase == "decode" else ""
        lines.append(f"  {phase:<11} {cost(value, unit)}{each}")
    if figures["load"] is not None and unit is not None:
        lines.append(f"  load        {cost(figures['load'], unit)}")
    facts = run["facts"]
    if "warm_up_runs" in facts:
        steady = "" if facts.get("warm_up_steady") else ", and its time was not steady yet"
        lines.append(f"  warm-up     {facts['warm_up_runs']} runs before those timed{steady}")
    for name, count in figures["classes"].items():
        told, what = f"{number(count / 1e6)} M", plain(name).replace("_", " ")
        total = name == "all"
        lines.append(
            f"  workload    {told} instructions" if total else f"  of these    {told} {what}"
        )
    for name in ("heap_mib", "peak_mib"):
        if figures[name] is not None:
            lines.append(f"  {name.removesuffix('_mib'):<11} {number(figures[name])} MiB")
    if unit is None:
        lines.append("  cost        this device gives none")
    return "\n".join(lines)
