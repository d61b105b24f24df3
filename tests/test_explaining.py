"""An artifact says what was removed from its model and what that cost, or what is wrong with it."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import exporter
from exporter.errors import ArtifactError
from exporter.report.explanation_html import explanation_to_html
from exporter.report.explanation_text import print_explanation
from tests import chain, tiny
from tests.signed import fix_hashes

CANDIDATES: dict[str, dict[str, Any]] = {
    "cut": {"pruning": {"layers": 0.5, "ffn": 0.5, "examples": 8}},
    "rounds": {
        "pruning": {"ffn": 0.875, "sparsity": 0.5, "examples": 8},
        "fine_tune": {**chain.FINE_TUNE, "steps": 7},
    },
}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One artifact a candidate, each pruned another way."""
    root = tmp_path_factory.mktemp("explain")
    model, data = tiny.checkpoint("bert", root / "bert"), chain.text_data(root / "rows.jsonl")
    made = {}
    for name, candidate in CANDIDATES.items():
        recipe = {"candidates": [{"name": name, "quantization": "dynamic-int8", **candidate}]}
        target = chain.quick_target(recipe=recipe, accuracy_drop_points=60.0, disk_size_ratio=0.9)
        result = exporter.export(
            model, data=data, target=target, out=root / name, cache=root / "cache"
        )
        made[name] = result.directory
    return made


@pytest.fixture
def damaged(artifacts: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of an artifact whose report was changed, its hash too."""

    def make(name: str, change: Callable[[dict[str, Any]], Any]) -> Path:
        copy = Path(shutil.copytree(artifacts[name], tmp_path / "copy"))
        path = copy / "report.json"
        report = json.loads(path.read_text(encoding="utf-8"))
        change(report)
        path.write_text(json.dumps(report), encoding="utf-8")
        fix_hashes(copy)
        return copy

    return make


def _printed(told: exporter.Explanation, *, terminal: bool) -> str:
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    print_explanation(told, Console(file=out, width=80, force_terminal=terminal, no_color=True))
    out.seek(0)
    return out.read()


def test_a_cut_is_told_part_by_part(artifacts: dict[str, Path]) -> None:
    told = exporter.explain(artifacts["cut"])
    report = json.loads((artifacts["cut"] / "report.json").read_text(encoding="utf-8"))
    pruning = report["pruning"]
    (gone,) = set(range(pruning["layers"]["before"])) - set(pruning["layers"]["kept"])
    assert [(c.part, c.layer) for c in told.costs] == [
        ("layers", gone),
        *(("ffn", layer) for layer in pruning["layers"]["kept"]),
    ]
    assert [c.divergence for c in told.costs] == [c["divergence"] for c in pruning["costs"]]
    assert told.removed[0].startswith(f"Layer {gone} of 2 (counted from 0) was removed: alone it")
    assert told.removed[1].startswith("Feed-forward units: ")
    assert "of their importance by wanda stays" in told.removed[1]
    (whole,) = told.together
    assert whole.divergence == pruning["divergence"]
    assert whole.without == pruning["compensation"]["divergence_without"]
    before, after = told.sizes["parameters"]
    assert before > after > 0
    assert told.recovered == ("Nothing was trained.",)
    assert told.quantized[0].startswith("Quantization: dynamic-int8; ")
    assert told.verdict == report["verdict"]
    assert told.summary == report["summary"]


def test_rounds_are_told_apart(artifacts: dict[str, Path]) -> None:
    told = exporter.explain(artifacts["rounds"])
    assert told.rounds > 1
    for number in range(1, told.rounds + 1):
        own = [c for c in told.costs if c.round == number]
        assert [c.layer for c in own if c.part == "ffn"] == [0, 1]
        assert sum(whole.round == number for whole in told.together) == 1
    assert told.costs[-1].part == "sparsity"
    first, last = (
        next(c for c in some if c.part == "ffn") for some in (told.costs, told.costs[::-1])
    )
    assert first.after == last.before or told.rounds > 2
    assert told.recovered[0].startswith("Fine-tuning ")
    assert len(told.losses) > 1
    text = _printed(told, terminal=False)
    assert "round 1: feed-forward units" in text
    assert f"round {told.rounds}: zeros, alone" in text


def test_words_and_pictures(artifacts: dict[str, Path]) -> None:
    told = exporter.explain(artifacts["cut"])
    shown = _printed(told, terminal=True)
    assert max(map(len, shown.splitlines())) <= 80
    assert "█" in shown
    plain = _printed(told, terminal=False)
    assert plain.isascii()
    assert "###" in plain
    page = explanation_to_html(told)
    assert page.count('class="paid"') == len(told.costs) + 2 * len(told.together)
    assert 'width="100.0%"' in page, "the largest cost fills the row"
    assert "<script" not in page
    json.dumps(told.to_json(), allow_nan=False)


def test_nothing_removed_is_said(signed: dict[str, Any]) -> None:
    told = exporter.explain(signed["result"].directory)
    assert told.removed == (
        "Nothing was removed: every layer, head and unit of the original is there.",
    )
    assert told.costs == told.together == ()
    assert "Nothing was removed" in _printed(told, terminal=False)
    assert "Nothing was removed" in explanation_to_html(told)


def test_an_older_artifact_is_explained_as_far_as_it_goes(damaged: Callable[..., Path]) -> None:
    def older(report: dict[str, Any]) -> None:
        del report["pruning"]["costs"]

    told = exporter.explain(damaged("cut", older))
    assert told.costs == ()
    assert told.together
    assert told.removed[-1] == "What each part costs alone was not measured when this was made."
    assert 'class="paid"' not in explanation_to_html(told)


def _set(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(report: dict[str, Any]) -> None:
        place: Any = report
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


DAMAGED: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "a word for a cost": (
        _set("pruning", "costs", 0, "divergence", value="free"),
        "report.json: pruning.costs.0.divergence: ",
    ),
    "a list of no costs": (
        _set("pruning", "costs", value={"a": 1}),
        "report.json: pruning.costs: ",
    ),
    "a layer that is not there": (
        _set("pruning", "layers", "kept", value=[7]),
        "report.json: pruning.layers: kept must be some of 2 layers",
    ),
    "endless layers": (
        _set("pruning", "layers", "before", value=10**15),
        "report.json: pruning.layers: before must be at most",
    ),
    "more than before": (
        _set("pruning", "ffn", "after", value=10**9),
        "report.json: pruning.ffn: after must be at most",
    ),
    "endless rounds": (
        _set("pruning", "costs", 0, "round", value=10**9),
        "report.json: pruning.costs.0.round: ",
    ),
    "a sum that is no number": (
        _set("pruning", "divergence", value=[1]),
        "report.json: pruning.divergence: ",
    ),
    "a history of words": (
        _set("recovery", value={"history": ["went well"]}),
        "report.json: recovery.history.0: ",
    ),
    "layers without a size": (
        _set("audit", value={"layers": [{"name": "a"}]}),
        "report.json: must hold facts that can be explained",
    ),
    "no pruning at all": (_set("pruning", value=3), "report.json: field 'pruning' is malformed"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_facts_are_refused_by_name(case: str, damaged: Callable[..., Path]) -> None:
    change, words = DAMAGED[case]
    with pytest.raises(ArtifactError) as caught:
        exporter.explain(damaged("cut", change))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_others_wrote_is_shown_as_text(damaged: Callable[..., Path]) -> None:
    def hostile(report: dict[str, Any]) -> None:
        report["title"] = "<script>alert(1)</script>\x1b[31m"
        report["recipe"]["name"] = "\u202e[bold]evil[/bold]"
        report["pruning"]["costs"][0] |= {"part": "<b>x</b>", "name": "<i>", "layer": None}
        report["pruning"]["criterion"] = "\x1b]0;owned\x07"

    told = exporter.explain(damaged("cut", hostile))
    page = explanation_to_html(told)
    assert "<script>alert" not in page
    assert "<b>x" not in page
    text = _printed(told, terminal=False)
    assert "\x1b" not in text
    assert "[bold]evil[/bold]" in text


def test_what_is_no_artifact_is_refused(artifacts: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"must be an artifact with a manifest\.json"):
        exporter.explain(tmp_path)
    copy = Path(shutil.copytree(artifacts["cut"], tmp_path / "copy"))
    (copy / "report.json").write_text("{}")
    with pytest.raises(ArtifactError, match="differs from the hash in the manifest"):
        exporter.explain(copy)
    (copy / "report.json").unlink()
    fix_hashes(copy)
    with pytest.raises(ArtifactError, match=r"must name report\.json"):
        exporter.explain(copy)


def test_the_command_prints_draws_and_tells(artifacts: dict[str, Path], tmp_path: Path) -> None:
    page = tmp_path / "explained.html"

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "exporter", "explain", str(artifacts["cut"]), *words],
            capture_output=True,
            text=True,
        )

    done = run("--json", "--html", str(page))
    assert done.returncode == 0, done.stderr
    told = exporter.explain(artifacts["cut"])
    assert json.loads(done.stdout) == json.loads(json.dumps(told.to_json()))
    assert page.read_text(encoding="utf-8") == explanation_to_html(told)
    refused = run("--html", str(tmp_path / "nowhere" / "page.html"))
    assert refused.returncode == 2
    assert refused.stderr.count("error: ") == 1
    assert refused.stdout == ""
