"""`exporter importance`: what it says, what it refuses, and that a killed run goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import exporter
from exporter.report.importance import ImportanceReport, correlation
from exporter.report.importance_html import importance_to_html
from tests import chain, tiny


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("ranking")
    return {
        "root": root,
        "bert": tiny.checkpoint("bert", root / "bert"),
        "qwen3": tiny.checkpoint("qwen3", root / "qwen3"),
        "data": chain.text_data(root / "rows.jsonl"),
        "cache": root / "cache",
    }


def _run(work: dict[str, Path], *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "exporter", "importance", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "EXPORTER_CACHE": str(work["cache"]), "COLUMNS": "80"},
    )


@pytest.fixture(scope="module")
def report(work: dict[str, Path]) -> ImportanceReport:
    return exporter.importance(
        work["qwen3"], data=work["data"], examples=8, ablate=6, cache=work["cache"]
    )


def test_every_unit_has_a_share_by_every_criterion(report: ImportanceReport) -> None:
    kinds = {kind.kind: kind for kind in report.kinds}
    assert list(kinds) == ["layer", "head", "group", "ffn", "hidden"]
    assert len(kinds["ffn"].units) == 128
    assert len(kinds["hidden"].units) == 32
    for kind in report.kinds:
        for criterion, values in kind.importance.items():
            known = [v for v in values if v is not None]
            assert max(known) == 1
            assert min(known) >= 0
            assert criterion == "ablation" or len(known) == len(kind.units)
    assert sum(v is not None for v in kinds["ffn"].loss_change) == 6
    assert kinds["ffn"].spearman.keys() >= {"magnitude", "wanda", "taylor", "fisher", "obs"}
    assert all(-1 <= r <= 1 for r in kinds["ffn"].spearman.values() if r is not None)
    assert json.loads(json.dumps(report.to_json()))["kinds"][0]["kind"] == "layer"


def test_the_page_draws_every_kind_and_runs_no_script(report: ImportanceReport) -> None:
    page = importance_to_html(report)
    for kind in report.kinds:
        assert f"<h2>{kind.kind.capitalize()}</h2>" in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("<rect x=") == 2 + 8 + 4 + 2 * 64 + 32


def test_the_command_fits_80_columns_and_counts_what_would_stay(work: dict[str, Path]) -> None:
    page = work["root"] / "page.html"
    done = _run(
        work, work["bert"], "-d", work["data"], "--examples", 8, "--ablate", 4, "--html", page,
        "--granularity", "layer,head,ffn", "--ratio", 0.5,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Spearman with ablation" in done.stdout
    tables = [line for line in done.stdout.splitlines() if " by " not in line and "/" not in line]
    assert max(map(len, tables)) <= 80
    for criterion in ("magnitude", "wanda", "obs", "mask-gradient"):
        assert re.search(rf"^{criterion} ", done.stdout, re.MULTILINE)
    assert re.search(r"^ffn +128 +64 +\d+ ", done.stdout, re.MULTILINE)
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    again = _run(
        work, work["bert"], "-d", work["data"], "--examples", 8, "--ablate", 4, "--json",
        "--granularity", "layer,head,ffn", "--budget", "parameters=0.5",
    )  # fmt: skip
    told = json.loads(again.stdout)
    assert told["selected"][-1]["kept"] == 64
    assert "score importance" not in again.stderr, "finished stages are not run again"


def test_other_granularities(work: dict[str, Path]) -> None:
    found = exporter.importance(
        work["bert"], data=work["data"], examples=4, ablate=3, cache=work["cache"],
        granularities=["row", "column"], criteria=["magnitude", "wanda", "ablation"],
    )  # fmt: skip
    assert [kind.kind for kind in found.kinds] == ["row", "column"]
    single = exporter.importance(
        work["bert"], data=work["data"], examples=4, cache=work["cache"],
        granularities=["weight"], criteria=["magnitude", "fisher"],
    )  # fmt: skip
    assert len(single.kinds[0].units) == 256


BAD = {
    "no data": ([], "--data: is missing"),
    "criterion": (["-d", "{data}", "--criteria", "wnada"], "--criteria: must be of magnitude"),
    "no criterion": (["-d", "{data}", "--criteria", ""], "--criteria: must name one at least"),
    "granularity": (["-d", "{data}", "--granularity", "heads"], "--granularity: must be of layer"),
    "two rules": (["-d", "{data}", "--ratio", "0.5", "--threshold", "0.5"], "cannot be given"),
    "budget": (["-d", "{data}", "--budget", "flops=2"], "flops=SHARE"),
    "too little data": (
        ["-d", "{data}", "--examples", "1", "--criteria", "obs"],
        "Hessian: needs at least as many positions as input features",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_message(work: dict[str, Path], case: str) -> None:
    arguments, words = BAD[case]
    done = _run(work, work["bert"], *(a.format(**work) for a in arguments))
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert words in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr


def test_a_killed_run_goes_on_where_it_was(work: dict[str, Path], tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "exporter", "importance", str(work["bert"]), "-d", str(work["data"]),
        "--examples", "8", "--granularity", "ffn", "--ablate", "128", "--json",
    ]  # fmt: skip
    env = {**os.environ, "EXPORTER_CACHE": str(tmp_path)}
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    written: list[str] = []
    while process.poll() is None and len(written) < 10:
        files = list(tmp_path.glob("ablation/*.scratch/ablation.jsonl"))
        written = files[0].read_text(encoding="utf-8").splitlines() if files else []
    process.send_signal(signal.SIGKILL)
    process.communicate()
    [file] = tmp_path.glob("ablation/*.scratch/ablation.jsonl")
    kept = file.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
    assert 10 <= len(kept) < 129
    # What is written down is believed: a changed line shows up in the result.
    name, _ = json.loads(kept[1])
    file.write_text("\n".join([kept[0], json.dumps([name, 77.0]), *kept[2:]]) + "\n")
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "score importance" not in done.stderr
    changes = json.loads(done.stdout)["kinds"][0]["loss_change"]
    assert len(changes) == 128
    assert max(changes) == pytest.approx(77.0 - json.loads(kept[0])[1])


def test_correlation_is_of_ranks() -> None:
    assert correlation([1, 2, 3, 400], [0, 0.1, 0.2, 0.3]) == 1
    assert correlation([4, 3, 2, None, 1], [0, 0.1, 0.2, 9, 0.3]) == -1
    assert correlation([1, 2, 3], [1, 2, 3]) is None, "three say nothing"
    assert correlation([1, 1, 1, 1], [1, 2, 3, 4]) is None


def test_what_nobody_asked_for_and_lacks_data_is_left_out(work: dict[str, Path]) -> None:
    found = exporter.importance(
        work["bert"],
        data=work["data"],
        granularities=["ffn"],
        examples=1,
        ablate=0,
        cache=work["cache"],
    )
    (ffn,) = found.kinds
    assert "obs" not in ffn.importance
    assert ffn.importance.keys() >= {"magnitude", "wanda", "taylor", "fisher"}
