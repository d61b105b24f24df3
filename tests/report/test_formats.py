"""JUnit, Markdown, HTML and the terminal: complete, parseable, and safe with hostile names."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from exporter.report.charts import LETTER, NARROW, WIDE, Frame, scatter, strip
from exporter.report.document import Report
from exporter.report.html import to_html
from exporter.report.json import to_json_text
from exporter.report.junit import to_junit
from exporter.report.markdown import to_markdown
from exporter.report.render import render
from exporter.report.rows import budget_rows
from exporter.report.terminal import _table, print_summary, voice
from tests.report import samples


class Page(HTMLParser):
    """What a browser would see of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def shown(
    report: Report,
    *,
    width: int = 80,
    terminal: bool = False,
    page: Path | None = None,
    **options: object,
) -> str:
    file = io.StringIO()
    options.setdefault("legacy_windows", False)
    console = Console(file=file, width=width, force_terminal=terminal, **options)  # type: ignore[arg-type]
    print_summary(report, console, artifact=Path("dist/x-mobile"), page=page)
    return file.getvalue()


# JUnit


def test_junit_has_one_case_a_budget_and_counts_what_did_not_pass() -> None:
    report = samples.failing()
    root = ElementTree.fromstring(to_junit(report))
    suite = root.find("testsuite")
    assert suite is not None
    cases = suite.findall("testcase")
    assert [c.get("name") for c in cases] == [j["metric"] for j in report.judgements]
    assert suite.get("tests") == root.get("tests") == "6"
    assert suite.get("failures") == root.get("failures") == "2"
    failed = {c.get("name"): c.find("failure") for c in cases if c.find("failure") is not None}
    assert {name: f.get("type") for name, f in failed.items() if f is not None} == {
        "accuracy_drop_points": "INCONCLUSIVE",
        "latency_ratio": "FAIL",
    }
    assert "allowed ≤ 0.6×" in str(failed["latency_ratio"].get("message"))  # type: ignore[union-attr]


def test_junit_of_a_pass_has_no_failures() -> None:
    root = ElementTree.fromstring(to_junit(samples.passing()))
    assert root.get("failures") == "0"
    assert root.findall(".//failure") == []


# Markdown


def test_markdown_table_has_a_row_a_budget_and_straight_columns() -> None:
    text = to_markdown(samples.failing())
    first = text[: text.index("## Latency")]
    rows = [line for line in first.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 6
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {8}
    assert "✕ FAIL" in text.splitlines()[0]
    assert "0.810×" in text
    assert "? INCONCLUSIVE" in text


def test_markdown_disarms_markup() -> None:
    text = to_markdown(samples.hostile())
    assert not re.search(r"(?<!\\)<", text.split("```")[0])
    assert "\x1b" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    tables = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
    assert tables == {8, 7}  # budgets; phases and candidates


def test_markdown_fence_outlasts_backticks() -> None:
    from dataclasses import replace

    text = to_markdown(replace(samples.passing(), command="echo ````x````"))
    assert text.rstrip().endswith("\n`````")


# HTML


def test_html_stands_alone() -> None:
    page = Page(to_html(samples.passing()))
    assert not [a for _, a in page.tags if str(a.get("src", "data:")).split(":")[0] != "data"]
    assert [a.get("href") for t, a in page.tags if t in ("link", "a")] == ["data:,"]
    assert "script" not in {tag for tag, _ in page.tags}
    assert not [name for _, a in page.tags for name in a if name.startswith("on")]
    css = to_html(samples.passing()).split("<style>")[1].split("</style>")[0]
    assert "url(" not in css
    assert "@import" not in css
    assert "prefers-color-scheme: dark" in css


@pytest.mark.parametrize("make", [samples.passing, samples.failing, samples.language_model])
def test_html_shows_every_row(make: object) -> None:
    report = make()  # type: ignore[operator]
    text = Page(to_html(report)).text
    for row in budget_rows(report):
        assert row.title in text
        assert row.measured in text
        assert row.limit in text
    for candidate in report.candidates:
        assert candidate.name in text
        assert candidate.reason in text
    assert report.command in text


def test_html_escapes_what_users_name() -> None:
    text = to_html(samples.hostile())
    page = Page(text)
    clean = Page(to_html(samples.passing()))
    assert "script" not in {tag for tag, _ in page.tags}
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in clean.tags}
    assert "<script>alert(1)</script>" in page.text  # as text, for the reader to see
    assert "{{7*7}}" in page.text  # not computed
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_html_of_a_bare_report() -> None:
    bare = Report("bare", "INCONCLUSIVE", "Nothing was judged.", ())
    assert "Nothing was judged." in Page(to_html(bare)).text


def test_files_of_a_report() -> None:
    files = render(samples.hostile())
    assert set(files) == {"report.json", "report.html", "report.md", "junit.xml", "README.md"}
    ElementTree.fromstring(files["junit.xml"])
    assert files["report.json"] == to_json_text(samples.hostile())
    assert render(samples.passing()) == render(samples.passing())


# Drawings


def test_strips_put_limits_at_one_place_and_values_on_their_side() -> None:
    strips = {row.metric: strip(row) for row in budget_rows(samples.failing())}
    assert len({s.limit for s in strips.values()}) == 1
    for row in budget_rows(samples.failing()):
        drawn = strips[row.metric]
        assert drawn.value is not None
        assert (drawn.value > drawn.limit) == (row.metric == "latency_ratio")
    accuracy = strips["accuracy_drop_points"]
    assert accuracy.low is not None
    assert accuracy.high is not None
    assert accuracy.low < accuracy.limit < accuracy.high


def test_scatter_puts_the_faster_left_and_the_better_up() -> None:
    for frame in (WIDE, NARROW):
        drawn = scatter(samples.language_model(), frame)
        assert drawn is not None
        dots = {d.name.split(" ")[0]: d for d in drawn.dots}
        assert dots["int4"].x < dots["int8"].x < dots["original"].x
        assert dots["original"].y < dots["int4"].y < dots["pruned-int8"].y
        assert "1.310×" in dots["pruned-int8"].name  # off the axis, so it says where
        for dot in drawn.dots:
            assert frame.left <= dot.x <= frame.right
            assert frame.top <= dot.y <= frame.bottom


def test_one_candidate_needs_no_drawing() -> None:
    from dataclasses import replace

    report = samples.passing()
    assert scatter(replace(report, candidates=report.candidates[:1]), WIDE) is None


# Terminal


def test_summary_fits_80_columns_with_all_figures() -> None:
    text = shown(samples.failing())
    table = text.split("Failed one budget")[0]
    assert max(len(line) for line in table.splitlines()) <= 80
    for figure in ("80.30 %", "79.60 %", "0.810x", "<= 0.6x", "-0.210x", "INCONCLUSIVE", "FAIL"):
        assert figure in table
    assert "…" not in text


def test_logs_get_plain_ascii() -> None:
    text = shown(samples.failing())
    assert text.isascii()
    assert "\x1b" not in text
    assert "artifact: dist/x-mobile" in text


def test_the_last_line_is_the_reason() -> None:
    """A pipeline's log ends with why, not with where."""
    for report in (samples.failing(), samples.inconclusive(), samples.passing()):
        assert shown(report).rstrip().splitlines()[-1] == ascii_of(report.summary)


def test_only_a_report_that_was_written_is_named() -> None:
    """A check writes none: the one in the artifact is of the export."""
    assert "report:" not in shown(samples.passing())
    page = Path("dist/x-mobile/report.html")
    assert f"report: {page}" in shown(samples.passing(), page=page)


def _reading(device: str, **changes: object) -> dict[str, object]:
    told = {"decisions": 791, "flips": 56, "cosine": 0.9996}
    figures = {"status": "ran", "float_difference": 3.8e-6, "there": told, "here": told}
    return {"device": device, "required": False, **figures, **changes}


@pytest.mark.parametrize("terminal", [False, True])
def test_many_devices_fit_into_80_columns(terminal: bool) -> None:
    names = ["arm64:cortex-a53", "arm64:cortex-a76", "x86-64:haswell", "browser:phone", "local"]
    readings = tuple(_reading(name, required=True) for name in names)
    report = replace(samples.passing(), devices=readings)
    text = shown(report, terminal=terminal, color_system=None)
    lines = text.split("artifact:")[0].splitlines()
    assert max(len(line) for line in lines) <= 80
    heads = [line for line in lines if line.startswith("on devices")]
    assert " ".join(heads).replace("on devices", "").split() == names
    assert len([line for line in lines if line.startswith("required")]) == len(heads)


def test_flips_on_a_device_stand_beside_those_here() -> None:
    """The budget on a device's flips is on the difference, which may be none."""
    less = {"decisions": 791, "flips": 50}
    report = replace(
        samples.passing(), devices=(_reading("local"), _reading("wasm", here=less, required=True))
    )
    text = shown(report, width=120)
    (flips,) = [line for line in text.splitlines() if line.startswith("flips from")]
    assert "56 of 791, as here" in flips
    assert "56 of 791, here 50 of 791" in flips
    (required,) = [line for line in text.splitlines() if line.startswith("required")]
    assert required.split() == ["required", "-", "yes"]


def ascii_of(text: str) -> str:
    for sign, plain in (("≤", "<="), ("×", "x"), ("–", "-"), ("−", "-")):
        text = text.replace(sign, plain)
    return text


def test_terminals_get_colour_and_signs() -> None:
    text = shown(samples.passing(), terminal=True)
    assert "\x1b[1;32m" in text
    assert "✓" in text
    assert "≤ 0.6×" in text


def test_narrow_terminals_keep_the_verdict() -> None:
    text = shown(samples.failing(), width=60, terminal=True, color_system=None)
    lines = text.splitlines()
    assert max(len(line) for line in lines if "artifact" not in line) <= 60
    assert "INCONCLUSIVE" in text
    assert "−0.210×" in text


@pytest.mark.parametrize("terminal", [False, True])
def test_every_budget_fits_into_80_columns_with_its_verdict(terminal: bool) -> None:
    rows = budget_rows(samples.inconclusive())
    nats = replace(rows[0], title="KL, p99.9", measured="0.00123 nats", limit="≤ 1.5 nats")
    wide = replace(rows[0], reference="123,456.78 MiB", margin="−1.2e−05 nats")
    for table, one_line in (((*rows, nats), True), ((*rows, wide, nats), False)):
        for width in (80, 50, 34):
            file = io.StringIO()
            console = Console(
                file=file, width=width, force_terminal=terminal, legacy_windows=False,
                color_system=None,
            )  # fmt: skip
            rich, said = voice(console)
            console.print(_table(table, rich, said, width=width))
            lines = file.getvalue().splitlines()
            assert max(map(len, lines)) <= width
            assert sum("INCONCLUSIVE" in line for line in lines) >= len(table) - len(rows)
            if width == 80 and one_line and terminal:
                assert len(lines) == len(table) + 2


def test_terminals_are_not_steered_by_names() -> None:
    for terminal in (False, True):
        text = shown(samples.hostile(), terminal=terminal, color_system=None)
        assert "\x1b" not in text
        assert "\x00" not in text
        assert "[bold]" in re.sub(r"\s", "", text)  # shown, not obeyed


def test_what_was_chosen_without_a_pass_and_the_divergence_are_said() -> None:
    report = samples.passing()
    assert "The fastest that passed was then judged once" in to_html(report)
    assert "KL 0.0832 nats to the original, before recovery" in to_html(report)
    beaten = tuple(
        replace(c, reason="lost" if c.status == "chosen" else "") for c in report.candidates
    )
    assert "None passed every budget there" in to_html(replace(report, candidates=beaten))


@pytest.mark.parametrize("frame", [WIDE, NARROW], ids=lambda f: f.kind)
def test_crowded_candidates_keep_their_labels_apart(frame: Frame) -> None:
    report = samples.passing()
    chosen = next(c for c in report.candidates if c.status == "chosen")
    crowd = [
        replace(chosen, name=f"pruned-{i}-int8", latency_ratio=0.34 + i / 50) for i in range(5)
    ]
    drawn = scatter(replace(report, candidates=tuple(crowd)), frame)
    assert drawn is not None
    labels = []
    for dot in drawn.dots:
        width = LETTER * len(dot.name)
        gap = dot.radius + 6
        left = dot.x + gap if dot.label_side == "start" else dot.x - gap - width
        assert frame.left <= left
        assert left + width <= frame.right
        labels.append((left, left + width, dot.label_y))
    for i, (left, right, y) in enumerate(labels):
        assert all(abs(y - v) >= 14 or right <= a or b <= left for a, b, v in labels[:i])
