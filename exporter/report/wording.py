"""Words and numbers as people read them, the same in every format of the report."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from exporter.budget import BUDGET_KINDS

ABSENT = "–"
VERDICT_MARKS = {"PASS": "✓", "FAIL": "✕", "INCONCLUSIVE": "?"}


def plain(text: object) -> str:
    """Text of others made harmless to show: one line, no control or direction-changing marks."""
    kept = (
        " " if c in "\t\n\r\v\f\x85\u2028\u2029" else c
        for c in str(text)
        if c in "\t\n\r\v\f\x85\u2028\u2029" or unicodedata.category(c) not in ("Cc", "Cf", "Cs")
    )
    return re.sub(r" {2,}", " ", "".join(kept)).strip()


def number(value: Any, digits: int = 3) -> str:
    """`digits` significant digits, never fewer than the whole part; a dash for absent or NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return ABSENT
    if isinstance(value, int) or value == 0:
        return f"{value:,.0f}"
    if abs(value) < 1e-4:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(decimals, 6)}f}".replace("-", "−")


def with_unit(value: Any, unit: str, digits: int = 3) -> str:
    """A number with its unit: `0.41×`, `12.3 ms`, `87.1 %`."""
    text, unit = number(value, digits), plain(unit)
    if text == ABSENT or not unit:
        return text
    return f"{text}{unit}" if unit == "×" else f"{text} {unit}"


def measured(metric: str, value: Any) -> str:
    """A judged value, its margin or an end of its interval, in the budget's own unit."""
    kind = BUDGET_KINDS.get(metric)
    return number(value) if kind is None else judged_figure(value, kind.unit)


def judged_figure(value: Any, unit: str) -> str:
    """A judged value with as many decimals as its unit deserves: `0.12 points`, `1.034×`."""
    if number(value) == ABSENT:
        return ABSENT
    decimals = {"points": 2, "×": 3, "": 4}.get(unit)
    if decimals is None or abs(value) >= 100 or 0 < abs(value) < 0.5 * 10**-decimals:
        text = number(value)
    else:
        text = _fixed(value, decimals)
    return f"{text}{unit}" if unit in ("×", "") else f"{text} {unit}"


def side(judgement: Mapping[str, Any], name: str) -> str:
    """The reference's or the candidate's own figure, in the unit it was measured in."""
    value, unit = judgement.get(name), plain(judgement.get("value_unit") or "")
    if unit == "%" and number(value) != ABSENT:
        return f"{_fixed(float(value), 2)} %"  # type: ignore[arg-type]
    return with_unit(value, unit, 3 if unit else 4)


def limit(metric: str, value: Any) -> str:
    """A limit with the side that is allowed: `≤ 0.6×`."""
    if number(value) == ABSENT:
        return ABSENT
    sign = "≥" if _good_above(metric) else "≤"
    unit = BUDGET_KINDS[metric].unit if metric in BUDGET_KINDS else ""
    unit = "point" if unit == "points" and value == 1 else unit
    return f"{sign} {value:g}{unit}" if unit in ("×", "") else f"{sign} {value:g} {unit}"


def title_of(judgement: Mapping[str, Any]) -> str:
    """What a budget is called."""
    kind = BUDGET_KINDS.get(str(judgement.get("metric", "")))
    return plain(judgement.get("title") or (kind.title if kind else judgement.get("metric", "?")))


def budget_used(judgement: Mapping[str, Any], value: Any) -> float | None:
    """How much of a budget `value` uses up: 0 nothing, 1 exactly at the limit, more is too much.

    A drop counts from 0, a ratio of perplexities from 1, a cosine downwards from 1, anything
    else from 0. None when there is nothing to divide.
    """
    bound = judgement.get("limit")
    if number(value) == ABSENT or number(bound) == ABSENT:
        return None
    kind = BUDGET_KINDS.get(str(judgement.get("metric", "")))
    origin = kind.origin if kind else 0.0
    room = float(bound) - origin  # type: ignore[arg-type]
    return (float(value) - origin) / room if room else None


def explain(
    judgements: Sequence[Mapping[str, Any]], stability: Mapping[str, Any] | None = None
) -> str:
    """One sentence why the verdict is what it is, and what would change it.

    Args:
        stability: of the report; other seeds that judge otherwise are said in a second sentence.
    """
    told = [_explained(judgements)]
    if stability is not None and len({r["verdict"] for r in stability["repeats"]}) > 1:
        told.append(repeated(stability))
    return " ".join(told)


def repeated(stability: Mapping[str, Any]) -> str:
    """Whether other seeds came to the verdict of the one that ships."""
    first, *others = stability["repeats"]
    if not stability["varies"] and all(r["verdict"] != "ERROR" for r in others):
        return (
            "Nothing in this candidate depends on the seed: it is neither trained nor calibrated."
        )
    different = [r for r in others if r["verdict"] != first["verdict"]]
    if not different:
        return f"All {len(others) + 1} seeds came to {first['verdict']}."
    told = []
    for r in different:
        why = ", ".join(r["lost"]) or plain(r["reason"])
        told.append(f"seed {r['seed']}: {r['verdict']}" + (f" ({why})" if why else ""))
    return (
        f"{len(different)} of {len(others)} other seeds did not repeat the {first['verdict']} of "
        f"seed {first['seed']}: {', '.join(told)}. The artifact holds seed {first['seed']}."
    )


def _explained(judgements: Sequence[Mapping[str, Any]]) -> str:
    failed = [j for j in judgements if j.get("verdict") == "FAIL"]
    thin = [j for j in judgements if j.get("verdict") not in ("PASS", "FAIL")]
    if not judgements:
        return "Nothing was judged, so nothing is shown."
    if failed:
        lost = "; ".join(_lost(j) for j in failed)
        which = "one budget" if len(failed) == 1 else f"{len(failed)} of {len(judgements)} budgets"
        return f"Failed {which}: {lost}. {_remedy(failed, judgements)}"
    if thin:
        lost = "; ".join(_thin(j) for j in thin)
        return f"Too little evidence for {_listed([title_of(j) for j in thin])}: {lost}."
    every = "the one budget" if len(judgements) == 1 else f"all {len(judgements)} budgets"
    # a veto is judged by what was seen, so its bound is no worst case that was ruled out
    shown = [j for j in judgements if not _is_veto(j)]
    if not shown:
        return f"Within {every}."
    tight = max(shown, key=_tightness)
    metric = str(tight.get("metric", ""))
    worst = measured(metric, _worst_end(tight))
    if worst == ABSENT:
        return f"Within {every}."
    allowed = limit(metric, tight.get("limit"))
    return (
        f"Within {every}; the tightest is {title_of(tight)}{_where(tight)}: at worst {worst}, "
        f"allowed {allowed}."
    )


def _lost(judgement: Mapping[str, Any]) -> str:
    metric = str(judgement.get("metric", ""))
    got = measured(metric, judgement.get("measured"))
    bound = limit(metric, judgement.get("limit"))
    if got == ABSENT:
        return f"{title_of(judgement)} could not be measured ({plain(judgement.get('reason', ''))})"
    return f"{title_of(judgement)}{_where(judgement)} is {got}, allowed {bound}"


def _where(judgement: Mapping[str, Any]) -> str:
    """` on DEVICE`, where a device that was asked is what was judged."""
    device = plain(judgement.get("device") or "")
    return f" on {device}" if device else ""


def _thin(judgement: Mapping[str, Any]) -> str:
    reason = plain(judgement.get("reason") or "")
    return reason.rstrip(".") or _lost(judgement)


def _remedy(failed: Sequence[Mapping[str, Any]], every: Sequence[Mapping[str, Any]]) -> str:
    """The smallest change of limits that would pass, and what that leaves open."""
    changes = []
    for judgement in failed:
        metric = str(judgement.get("metric", ""))
        needed = judgement.get("measured") if _is_veto(judgement) else _worst_end(judgement)
        if number(needed) == ABSENT:
            return "Without a measurement no limit would pass."
        if metric == "latency_ratio" and float(judgement.get("low") or 0) > 1:
            return "It is slower than the original, which no profile allows."
        if metric == "latency_ratio" and float(needed or 0) > 1:
            return "It may be slower than the original, which no profile allows."
        changes.append(f"{metric} = {_rounded_out(float(needed or 0), down=_good_above(metric))}")
    rest = any(j.get("verdict") not in ("PASS", "FAIL") for j in every)
    tail = "; the inconclusive ones need more evidence" if rest else ""
    return f"It would pass with {_listed(changes)} in the profile{tail}."


def _rounded_out(value: float, *, down: bool) -> str:
    """Three significant digits, rounded away from the measured value so that it would pass."""
    if value == 0:
        return "0.001" if not down else "-0.001"
    step = 10.0 ** (math.floor(math.log10(abs(value))) - 2)
    edge = (math.floor if down else math.ceil)(round(value / step, 6)) * step
    return f"{edge:.6g}"


def _worst_end(judgement: Mapping[str, Any]) -> Any:
    """The end of the interval that decides: an interval must lie inside its limit as a whole."""
    end = judgement.get("low" if _good_above(str(judgement.get("metric", ""))) else "high")
    return judgement.get("measured") if number(end) == ABSENT else end


def _good_above(metric: str) -> bool:
    kind = BUDGET_KINDS.get(metric)
    return kind is not None and kind.good == "above"


def _is_veto(judgement: Mapping[str, Any]) -> bool:
    kind = BUDGET_KINDS.get(str(judgement.get("metric", "")))
    return kind is not None and kind.veto


def _tightness(judgement: Mapping[str, Any]) -> float:
    used = budget_used(judgement, _worst_end(judgement))
    return -math.inf if used is None else used


def article(name: str) -> str:
    """The indefinite article that goes before a name."""
    return "an" if name[:1].lower() in tuple("aeiou") else "a"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _fixed(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}".replace("-", "−")
