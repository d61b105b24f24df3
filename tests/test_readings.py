"""The test split is read once, and whoever reads it again for another candidate says so."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import exporter
from exporter.cache import sha256_directory
from exporter.errors import OutputError
from exporter.readings import LEDGER, readings_note, record_reading, split_hash
from exporter.stability import final_judgement
from tests import chain, tiny


def _record(root: Path, candidate: str, model: str = "m", test: str = "t") -> tuple[str, ...]:
    return record_reading(root, model=model, test=test, candidate=candidate)


def test_each_candidate_counts_once_and_sees_those_before_it(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    assert _record(root, "a") == ()
    assert _record(root, "b") == ("a",)
    assert _record(root, "c") == ("a", "b")
    before = (root / LEDGER).read_bytes()
    assert _record(root, "a") == ()
    assert _record(root, "b") == ("a",)
    assert (root / LEDGER).read_bytes() == before
    assert _record(root, "d", model="another") == ()
    assert _record(root, "d", test="another") == ()


def test_a_line_that_was_cut_short_is_no_reading_and_spoils_none(tmp_path: Path) -> None:
    _record(tmp_path, "a")
    with (tmp_path / LEDGER).open("ab") as file:
        file.write(b'{"model": "m", "test": "t", "cand')
    assert _record(tmp_path, "b") == ("a",)
    assert _record(tmp_path, "c") == ("a", "b")


def test_a_kill_right_after_loses_nothing(tmp_path: Path) -> None:
    code = (
        "import os, signal; from pathlib import Path; "
        "from exporter.readings import record_reading; "
        f"record_reading(Path({str(tmp_path)!r}), model='m', test='t', candidate='a'); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code])
    assert done.returncode == -signal.SIGKILL
    assert _record(tmp_path, "b") == ("a",)


def _record_many(root: str, name: str) -> None:
    for i in range(20):
        _record(Path(root), f"{name}{i}")


def test_processes_do_not_lose_each_others_lines(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    all_ = [context.Process(target=_record_many, args=(str(tmp_path), n)) for n in "xyz"]
    for process in all_:
        process.start()
    for process in all_:
        process.join()
    assert [process.exitcode for process in all_] == [0, 0, 0]
    lines = (tmp_path / LEDGER).read_text(encoding="utf-8").splitlines()
    assert len({json.loads(line)["candidate"] for line in lines}) == len(lines) == 60


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_ledger_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / LEDGER).touch(mode=0o400)
    with pytest.raises(OutputError, match="must be writable"):
        _record(tmp_path, "a")


def test_the_order_of_examples_makes_no_other_split() -> None:
    assert split_hash(["a", "b"]) == split_hash(["b", "a"]) != split_hash(["a", "c"])


def test_the_note_counts() -> None:
    assert readings_note([]) is None
    assert "read once before for another candidate" in str(readings_note(["a" * 32]))
    note = str(readings_note(["a" * 32, "b" * 32]))
    assert "read 2 times before for other candidates" in note
    assert f"({'a' * 12}, {'b' * 12})" in note


def test_the_line_is_there_when_scoring_breaks_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        assert (tmp_path / LEDGER).is_file()
        raise KeyboardInterrupt

    monkeypatch.setattr("exporter.stages.judged_scores", broken)
    context: Any = SimpleNamespace(
        cache=SimpleNamespace(root=tmp_path), source=SimpleNamespace(content_hash="m")
    )
    reference: Any = SimpleNamespace(key="float")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.onnx").write_bytes(b"weights")
    built = SimpleNamespace(key="a", model=SimpleNamespace(directory=tmp_path / "model"))
    made: Any = SimpleNamespace(built=built, reference=reference)
    test: Any = SimpleNamespace(examples=SimpleNamespace(ids=("x", "y")))
    with pytest.raises(KeyboardInterrupt):
        final_judgement(context, reference, made, test, {})
    known = sha256_directory(tmp_path / "model")
    assert _record(tmp_path, "b", test=split_hash(["x", "y"])) == (known,)


def _content(directory: Path) -> dict[str, str]:
    return {
        p.relative_to(directory).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in directory.rglob("*")
        if p.is_file()
    }


def _manifest(result: exporter.Result) -> Any:
    return json.loads((result.directory / "manifest.json").read_text(encoding="utf-8"))


def test_a_second_candidate_of_the_same_model_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Fusions are chosen by timing, which on a busy machine makes other files of the same candidate.
    monkeypatch.setattr("exporter.graph.fuse.clearly_faster", lambda ratios: False)
    model = tiny.checkpoint("bert", tmp_path / "bert")
    data = chain.text_data(tmp_path / "rows.jsonl")

    def run(name: str, scheme: str, **options: Any) -> exporter.Result:
        candidate = {"name": scheme, "quantization": scheme}
        recipe = {"calibration_examples": 16, "candidates": [candidate]}
        return exporter.export(
            model,
            data=data,
            target=chain.quick_target(recipe=recipe, accuracy_drop_points=60, latency_ratio=0.01),
            out=tmp_path / name,
            cache=tmp_path / "cache",
            **options,
        )

    first = run("first", "dynamic-int8")
    assert _manifest(first)["test_readings"] == {"earlier": 0, "candidates": []}
    assert not [note for note in first.report.notes if "has been read" in note]
    before = _content(first.directory)
    stage = _manifest(first)["stages"]["candidate"]
    key = sha256_directory(tmp_path / "cache" / "quantized" / stage / "model")

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("exporter.pipeline.ship", stopped)
        with pytest.raises(KeyboardInterrupt):
            run("lost", "float16")
    assert not (tmp_path / "lost").exists()

    third = run("third", "none")
    readings = _manifest(third)["test_readings"]
    assert readings["earlier"] == 2  # the one that was never published has read the split too
    assert readings["candidates"][0] == key
    note = next(note for note in third.report.notes if "has been read 2 times before" in note)
    for page in ("report.html", "report.md"):
        assert "has been read 2 times before" in (third.directory / page).read_text("utf-8")
    assert key[:12] in note
    assert exporter.verify(third.directory).sound

    again = run("first", "dynamic-int8")
    assert _content(again.directory) == before
    # another target's budgets on the same candidate are no further reading of it
    lines = (tmp_path / "cache" / LEDGER).read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3

    # neither are the same files after an upgrade, for which every stage runs again
    monkeypatch.setattr("exporter.cache.library_versions", lambda: {"numpy": "99"})
    upgraded = run("upgraded", "dynamic-int8")
    assert _manifest(upgraded)["stages"]["candidate"] != stage
    assert _manifest(upgraded)["test_readings"] == {"earlier": 0, "candidates": []}
