"""A comparison as people see it: complete, narrow enough, and safe with hostile names."""

from __future__ import annotations

import io
import json
import re

import pytest
from rich.console import Console

from exporter.budget import BUDGET_KINDS, Budget
from exporter.judge.verdict import Verdict, judged
from exporter.report.comparison import Change, Compared, Comparison
from exporter.report.comparison_views import comparison_to_markdown, print_comparison
from tests.report.samples import HOSTILE


def comparison(text: str = "plain", *, high: float = 0.43, changes: bool = True) -> Comparison:
    side = Compared(f"dist/{text}", text, "text-classification", "mobile", "PASS", "0" * 64)
    made = [
        judged(
            Budget(BUDGET_KINDS["accuracy_drop_points"], 1.0),
            measured=0.12,
            low=-0.19,
            high=high,
            reference=80.31,
            candidate=80.19,
            value_unit="%",
            reason=text,
        ),
        judged(
            Budget(BUDGET_KINDS["latency_ratio"], 1.05),
            measured=0.977,
            low=0.957,
            high=0.995,
            reference=1234.5,
            candidate=1206.1,
            value_unit="ms",
            reason=text,
        ),
    ]
    differing = (Change(text, text, text, None), Change("recipe", "ffn", 0.25, ["a", "b"]))
    return Comparison(
        side, side, tuple(made), differing if changes else (), 0.05, 0.95, 4128, (text,)
    )


def shown(found: Comparison, *, terminal: bool = False, width: int = 80) -> str:
    file = io.StringIO()
    console = Console(
        file=file, width=width, force_terminal=terminal, color_system=None, legacy_windows=False
    )
    print_comparison(found, console)
    return file.getvalue()


def test_every_figure_is_on_one_line_at_80_columns() -> None:
    text = shown(comparison())
    assert text.isascii()
    assert max(map(len, text.splitlines()[:6])) <= 80
    for row in (
        ("accuracy drop", "80.31 %", "80.19 %", "0.12 pt", "-0.19 to 0.43", "<= 1 pt", "PASS"),
        ("latency ratio", "1,234 ms", "1,206 ms", "0.977x", "0.957 to 0.995", "<= 1.05x", "PASS"),
    ):
        assert any(all(figure in line for figure in row) for line in text.splitlines()), row


@pytest.mark.parametrize("width", [40, 60])
def test_narrow_terminals_keep_change_and_verdict(width: int) -> None:
    text = shown(comparison(high=1.8), terminal=True, width=width)
    for figure in ("0.12 pt", "0.977×", "INCONCLUSIVE"):
        assert figure in text


def test_the_summary_is_the_last_line_and_names_what_is_open() -> None:
    found = comparison("Too few flips.", high=1.8)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.exit_code == 3
    last = shown(found).rstrip().splitlines()[-1]
    assert last.startswith("It is not shown that")
    assert last.endswith("Too few flips.")
    assert "Nothing changed" in shown(comparison(changes=False))


def test_hostile_names_are_shown_and_not_obeyed() -> None:
    found = comparison(HOSTILE, high=1.8)
    for terminal in (False, True):
        text = shown(found, terminal=terminal)
        assert "\x1b" not in text
        assert "\x00" not in text
        assert "\u202e" not in text
        assert "[bold]" in re.sub(r"\s", "", text)
    page = comparison_to_markdown(found)
    assert not re.search(r"(?<!\\)<", page)
    assert "\x1b" not in page
    tables = {
        len(re.findall(r"(?<!\\)\|", line)) for line in page.splitlines() if line.startswith("|")
    }
    assert tables == {8, 5}
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["old"]["name"] == HOSTILE
