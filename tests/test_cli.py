"""The command line: exit codes, one clear message, clean standard output, nothing lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from exporter.toml import to_toml
from tests import chain, tiny


def run(*arguments: object, cache: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Call the command as a user would."""
    environment = {**os.environ, "EXPORTER_CACHE": str(cache or "/nonexistent")}
    return subprocess.run(
        [sys.executable, "-m", "exporter", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("cli")
    target = chain.quick_target(accuracy_drop_points=20.0, disk_size_ratio=0.9, latency_ratio=1.0)
    profile = root / "quick.toml"
    only = {"candidates": chain.RECIPE["candidates"][:1], "calibration_examples": 16}
    dumped = target.model_dump(mode="json", exclude_none=True) | {"recipe": only}
    profile.write_text(to_toml(dumped), encoding="utf-8")
    return {
        "root": root,
        "model": tiny.checkpoint("bert", root / "bert"),
        "data": chain.text_data(root / "rows.jsonl"),
        "profile": profile,
        "cache": root / "cache",
    }


def test_export_check_and_json(made: dict[str, Path]) -> None:
    out = made["root"] / "out"
    first = run(
        "export", made["model"], "-d", made["data"], "-t", made["profile"], "-o", out, "--json",
        cache=made["cache"],
    )  # fmt: skip
    report = json.loads(first.stdout)
    codes = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3}
    assert first.returncode == codes[report["verdict"]], first.stderr
    assert "Traceback" not in first.stderr
    assert "verdict" in first.stderr  # the table goes beside, not into, the JSON
    assert f"report: {out / 'report.html'}" in first.stderr

    checked = run("check", out, cache=made["cache"])
    assert checked.returncode in (0, 1, 3), checked.stderr
    for word in ("accuracy drop", "latency ratio", "size on disk"):
        assert word in checked.stdout
    assert "report.html" not in checked.stdout  # that one is of the export
    strict = chain.quick_target(disk_size_mib=1e-6)
    profile = made["root"] / "strict.toml"
    profile.write_text(to_toml(strict.model_dump(mode="json", exclude_none=True)))
    failed = run("check", out, "-t", profile, cache=made["cache"])
    assert failed.returncode == 1, failed.stderr


def test_plan_says_what_would_be_done_and_does_nothing(made: dict[str, Path]) -> None:
    before = sorted(made["root"].iterdir())
    done = run("plan", made["model"], "-d", made["data"], "-t", "mobile", cache=made["cache"])
    assert done.returncode == 0, done.stderr
    for words in (
        "text-classification",
        "dynamic-int8",
        "remove",
        "distil",
        "test examples",
        "development examples no candidate can show accuracy drop",
    ):
        assert words in done.stdout
    assert "it takes" in done.stdout
    assert "flips ≤ 0.05" in done.stdout
    assert "59 if none differs" in done.stdout
    assert sorted(made["root"].iterdir()) == before


def test_targets_lists_shows_and_describes(tmp_path: Path) -> None:
    listed = run("targets")
    assert listed.returncode == 0
    assert all(name in listed.stdout for name in ("mobile", "edge", "cloud-cpu"))
    assert max(map(len, listed.stdout.splitlines())) <= 80
    assert "dist/MODEL-TARGET" in run("export", "--help").stdout
    shown = run("targets", "edge")
    assert "sequence_length = 64" in shown.stdout
    assert "confidence = 0.95" in shown.stdout
    schema = json.loads(run("targets", "--schema").stdout)
    assert "latency_ratio" in json.dumps(schema)


def test_targets_and_check_do_without_torch(made: dict[str, Path], tmp_path: Path) -> None:
    """A machine that only checks artifacts need not install the training framework."""
    code = (
        "import sys\n"
        "for name in ('torch', 'optimum', 'datasets', 'accelerate'): sys.modules[name] = None\n"
        "from exporter.cli import main\n"
        "main()\n"
    )
    out = made["root"] / "light"
    export = run(
        "export", made["model"], "-d", made["data"], "-t", made["profile"], "-o", out,
        cache=made["cache"],
    )  # fmt: skip
    assert export.returncode in (0, 1, 3), export.stderr
    for arguments in (["targets"], ["check", str(out)], ["explain", str(out)]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "EXPORTER_CACHE": str(made["cache"])},
        )
        assert done.returncode in (0, 1, 3), done.stderr
        assert "error" not in done.stderr


BAD = {
    "unknown target": (
        ["export", "{model}", "-d", "{data}", "-t", "moblie"],
        "did you mean 'mobile'?",
    ),
    "no data": (["export", "{model}"], "--data: is missing"),
    "data not there": (["export", "{model}", "-d", "none.jsonl"], "none.jsonl"),
    "empty data": (["export", "{model}", "-d", "{root}/empty.jsonl"], "empty.jsonl"),
    "malformed data": (["export", "{model}", "-d", "{root}/broken.jsonl"], "broken.jsonl"),
    "one class": (["export", "{model}", "-d", "{root}/one.jsonl"], "class"),
    "foreign labels": (["export", "{model}", "-d", "{root}/foreign.jsonl"], "label"),
    "missing column": (["export", "{model}", "-d", "{root}/columns.jsonl"], "text"),
    "too few": (["export", "{model}", "-d", "{root}/few.jsonl"], "at least"),
    "model not there": (["export", "{root}/bret", "-d", "{data}"], "bret"),
    "truncated weights": (["export", "{root}/truncated", "-d", "{data}"], "model.safetensors"),
    "nan weights": (["export", "{root}/nan", "-d", "{data}"], "classifier.bias"),
    "unknown architecture": (["export", "{root}/unknown", "-d", "{data}"], "model_type"),
    "corrupt config": (["export", "{root}/corrupt", "-d", "{data}"], "config.json"),
    "invalid onnx": (
        ["export", "{root}/bad.onnx", "-d", "{data}", "--task", "text-classification"],
        "bad.onnx",
    ),
    "unknown task": (["export", "{model}", "-d", "{data}", "--task", "text-clasification"], "did"),
    "bad column option": (["export", "{model}", "-d", "{data}", "-c", "text"], "canonical=yours"),
    "unknown recipe key": (
        ["export", "{model}", "-d", "{data}", "-r", "{root}/recipe.toml"],
        "unknown key",
    ),
    "output not ours": (["export", "{model}", "-d", "{data}", "-o", "{root}/theirs"], "not made"),
    "output is a file": (["export", "{model}", "-d", "{data}", "-o", "{data}"], "directory"),
    "no artifact": (["check", "{root}/theirs"], "must be an artifact"),
    "nothing to explain": (["explain", "{root}/theirs"], "must be an artifact"),
    "unknown option": (["export", "{model}", "--dta", "x"], "no such option"),
    "number out of range": (["export", "{model}", "--seeds", "0"], "--seeds"),
    "missing argument": (["export"], "missing argument"),
    "unknown command": (["exprot"], "exprot"),
    "no command": ([], "command is missing"),
}


@pytest.fixture(scope="module")
def broken(made: dict[str, Path]) -> dict[str, Path]:
    import shutil

    from safetensors.numpy import load_file, save_file

    root = made["root"]
    rows = made["data"].read_text(encoding="utf-8").splitlines()
    parsed = [json.loads(row) for row in rows]

    def write(name: str, lines: list[object]) -> None:
        (root / name).write_text("".join(json.dumps(x) + "\n" for x in lines), encoding="utf-8")

    (root / "empty.jsonl").write_text("")
    (root / "broken.jsonl").write_text('{"text": "a"\n')
    write("one.jsonl", [{**row, "label": "animal"} for row in parsed])
    write("foreign.jsonl", [{**row, "label": f"x-{row['label']}"} for row in parsed])
    write("columns.jsonl", [{"words": row["text"], "label": row["label"]} for row in parsed])
    write("few.jsonl", parsed[:12])
    for name in ("truncated", "nan", "unknown", "corrupt"):
        shutil.copytree(made["model"], root / name)
    weights = root / "truncated" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    tensors = load_file(root / "nan" / "model.safetensors")
    tensors["classifier.bias"][0] = float("nan")
    save_file(tensors, root / "nan" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((root / "unknown" / "config.json").read_text())
    (root / "unknown" / "config.json").write_text(json.dumps({**config, "model_type": "brt"}))
    (root / "corrupt" / "config.json").write_text("{")
    (root / "bad.onnx").write_bytes(b"\x08\x01junk")
    (root / "recipe.toml").write_text('[[candidates]]\nname = "a"\nquantisation = "none"\n')
    (root / "theirs").mkdir()
    (root / "theirs" / "thesis.txt").write_text("precious")
    return made


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_message_and_exit_2(broken: dict[str, Path], case: str) -> None:
    arguments, words = BAD[case]
    done = run(*(a.format(**broken) for a in arguments), cache=broken["cache"])
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert (broken["root"] / "theirs" / "thesis.txt").read_text() == "precious"


def test_debug_shows_the_traceback() -> None:
    done = run("targets", "moblie", "--debug")
    assert done.returncode != 0
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_says_so_and_leaves_the_old_artifact(
    made: dict[str, Path], tmp_path: Path, how: signal.Signals
) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "exporter", "export", made["model"], "-d", made["data"],
         "-t", made["profile"], "-o", out],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "EXPORTER_CACHE": str(tmp_path)},
        # a test run started in the background may have inherited an ignored Ctrl-C
        preexec_fn=lambda: signal.signal(how, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if "reference: export" in line:
            break
    time.sleep(0.2)
    process.send_signal(how)
    rest = process.stderr.read()
    assert process.wait() == 2, rest
    assert "run it again to go on" in rest
    assert "Traceback" not in rest
    assert not out.exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".out")]


# Python has taken its handlers back when it removes what modules hold.
LATE = """
import os, signal, sys
class Late:
    def __del__(self, kill=os.kill, me=os.getpid(), number=signal.SIGINT):
        kill(me, number)
late = Late()
from exporter.cli import main
main()
"""


@pytest.mark.parametrize(("name", "code"), [("mobile", 0), ("moblie", 2)])
def test_a_late_stop_does_not_change_the_outcome(name: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LATE, "targets", name],
        capture_output=True, text=True, stdin=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


def test_a_page_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    for page, rule in (
        (tmp_path / "lost" / "page.html", "its directory does not exist"),
        (tmp_path, "must be a file, got a directory"),
    ):
        done = run("importance", tmp_path / "no-model", "--data", "no-data", "--html", page)
        assert done.returncode == 2
        assert f"{page}: {rule}" in " ".join(done.stderr.split())
