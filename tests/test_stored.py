"""Cache and artifact: whole or not there, whatever happens in between."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from contextlib import ExitStack
from pathlib import Path
from shutil import ignore_patterns
from typing import IO

import pytest

import exporter
from exporter.artifact import MODEL, load_artifact, publishing, write_manifest
from exporter.cache import Cache, library_versions, sha256_directory
from exporter.errors import ArtifactError, OutputError


def _count(out: Path, scratch: Path) -> None:
    runs = out.parent.parent / "runs"
    runs.write_text(str(int(runs.read_text()) + 1 if runs.exists() else 1))
    (out / "result").write_text("made")


def test_equal_inputs_are_made_once_and_others_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    first = cache.get_or_make("s", ("models",), {"a": 1}, _count)
    assert cache.get_or_make("s", ("models",), {"a": 1}, _count) == first
    assert (tmp_path / "runs").read_text() == "1"
    assert cache.get_or_make("s", ("models",), {"a": 2}, _count) != first
    assert cache.get_or_make("s", ("graph",), {"a": 1}, _count) != first
    assert cache.get_or_make("t", ("models",), {"a": 1}, _count) != first
    assert (tmp_path / "runs").read_text() == "4"


def test_a_library_version_is_part_of_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path)
    first = cache.get_or_make("s", (), {}, _count)
    monkeypatch.setattr("exporter.cache.library_versions", lambda: {"torch": "99"})
    assert cache.get_or_make("s", (), {}, _count) != first


def test_fresh_takes_nothing_from_a_run_beside_it(tmp_path: Path) -> None:
    beside, fresh = Cache(tmp_path), Cache(tmp_path, fresh=True)
    got = beside.get_or_make("s", (), {}, _count)
    made = fresh.get_or_make("s", (), {}, _count)
    assert made != got
    assert (got / "result").read_text() == "made"
    assert beside.find("s", got.name) == got
    # whoever comes later gets the fresh one
    assert Cache(tmp_path).get_or_make("s", (), {}, _count) == made
    assert (tmp_path / "runs").read_text() == "2"


def test_what_was_redone_goes_when_no_run_uses_it(tmp_path: Path) -> None:
    first = Cache(tmp_path).get_or_make("s", (), {}, _count)
    made = Cache(tmp_path, fresh=True).get_or_make("s", (), {}, _count)
    assert not first.exists()
    assert Cache(tmp_path).find("s", first.name) == made  # in the place of the first
    assert Cache(tmp_path).find("s", made.name) == made
    assert [p for p in tmp_path.glob("s/*") if p.is_dir()] == [made]


def test_an_entry_that_is_to_be_redone_is_redone_once_a_run(tmp_path: Path) -> None:
    def run(redo: bool) -> str:
        cache = Cache(tmp_path)
        for _ in range(2):
            cache.get_or_make("s", (), {}, _count, redo_if=lambda entry: redo)
        return (tmp_path / "runs").read_text()

    assert [run(True), run(False), run(True), run(True)] == ["1", "1", "2", "3"]


@pytest.mark.parametrize("edited", ["models/text.py", "target.py", "stages.py"])
def test_edited_code_misses(tmp_path: Path, edited: str) -> None:
    """Of the room, of a noun, and of the stage that hands the room its arguments."""
    package = Path(exporter.__file__).parent
    copy = shutil.copytree(package, tmp_path / "exporter", ignore=ignore_patterns("__pycache__"))
    code = "from exporter.cache import stage_key; print(stage_key('s', ('models',), {}))"

    def key() -> str:
        command = [sys.executable, "-B", "-c", code]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        ).stdout

    before = key()
    with (copy / edited).open("a") as file:
        file.write("# edited\n")
    assert key() != before


def test_pillow_decides_pixels() -> None:
    assert "pillow" in library_versions()


def test_fresh_redoes_each_stage_once(tmp_path: Path) -> None:
    Cache(tmp_path).get_or_make("s", (), {}, _count)
    fresh = Cache(tmp_path, fresh=True)
    fresh.get_or_make("s", (), {}, _count)
    fresh.get_or_make("s", (), {}, _count)
    assert (tmp_path / "runs").read_text() == "2"


def test_a_failed_stage_leaves_no_entry_and_keeps_its_scratch(tmp_path: Path) -> None:
    def fails(out: Path, scratch: Path) -> None:
        (out / "half").write_text("half")
        (scratch / "checkpoint").write_text("step 7")
        raise RuntimeError("stopped")

    def resumes(out: Path, scratch: Path) -> None:
        (out / "result").write_text((scratch / "checkpoint").read_text())

    cache = Cache(tmp_path)
    with pytest.raises(RuntimeError):
        cache.get_or_make("s", (), {}, fails)
    entry = cache.get_or_make("s", (), {}, resumes)
    assert sorted(p.name for p in entry.iterdir()) == ["result"]
    assert (entry / "result").read_text() == "step 7"
    assert not list(tmp_path.glob("s/*.scratch"))


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "must be writable")]
)
def test_a_full_or_closed_disk_is_one_clear_error(tmp_path: Path, number: int, words: str) -> None:
    def fails(out: Path, scratch: Path) -> None:
        raise OSError(number, os.strerror(number), str(out))

    with pytest.raises(OutputError, match=words):
        Cache(tmp_path).get_or_make("s", (), {}, fails)
    assert not [p for p in tmp_path.glob("s/*") if p.suffix not in (".lock", ".scratch")]


def _slow(root: str) -> None:
    def make(out: Path, scratch: Path) -> None:
        with (Path(root) / "log").open("a") as log:
            log.write("x")
        import time

        time.sleep(0.3)
        (out / "result").write_text("made")

    Cache(Path(root)).get_or_make("s", (), {}, make)


def test_two_processes_make_a_stage_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=_slow, args=(str(tmp_path),)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [p.exitcode for p in both] == [0, 0]
    assert (tmp_path / "log").read_text() == "x"


def _model(directory: Path) -> Path:
    (directory / "model").mkdir()
    return directory / MODEL


def _link_manifest(directory: Path) -> None:
    manifest = directory / "manifest.json"
    manifest.rename(directory.parent / "elsewhere.json")
    manifest.symlink_to(directory.parent / "elsewhere.json")


def _publish(out: Path, text: str) -> None:
    with publishing(out) as new:
        _model(new).write_text(text)
        write_manifest(new, {"verdict": "PASS"})


def test_publishing_replaces_at_once_and_keeps_the_old_on_failure(tmp_path: Path) -> None:
    out = tmp_path / "out"
    _publish(out, "one")
    before = sha256_directory(out)

    def fails() -> None:
        with publishing(out) as new:
            _model(new).write_text("half")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        fails()
    assert sha256_directory(out) == before
    _publish(out, "two")
    assert (out / MODEL).read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_kill_while_publishing_leaves_the_old_artifact(tmp_path: Path) -> None:
    out = tmp_path / "out"
    _publish(out, "one")
    code = f"""
        import os, signal
        from pathlib import Path
        from exporter.artifact import publishing
        with publishing(Path({str(out)!r})) as new:
            (new / "model").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)])
    assert done.returncode == -signal.SIGKILL
    assert load_artifact(out).manifest["verdict"] == "PASS"
    assert (out / MODEL).read_text() == "one"
    _publish(out, "two")
    assert (out / MODEL).read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_swap_cut_in_the_middle_is_undone_by_the_next_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    _publish(out, "one")
    out.rename(tmp_path / ".out.old")  # as after the first of the two renames

    def stopped() -> None:
        with publishing(out):
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        stopped()
    assert (out / MODEL).read_text() == "one"


def test_a_swap_that_fails_in_the_middle_is_undone_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    _publish(out, "one")
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if self.name == ".out.new":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(KeyboardInterrupt):
        _publish(out, "two")
    assert (out / MODEL).read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_two_runs_on_one_directory(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with publishing(out) as new:
        with pytest.raises(OutputError, match="another run is writing it"), publishing(out):
            pass
        _model(new).write_text("one")
        write_manifest(new, {})
    assert load_artifact(out)


def test_a_lock_that_is_released_while_it_is_opened_lets_one_run_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ends after B opened its lock file and before B locks it; C comes while B is inside."""
    out = tmp_path / "out"
    flock, first = fcntl.flock, ExitStack()
    first.enter_context(publishing(out))

    def ends_first(file: IO[str], how: int) -> None:
        first.close()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", ends_first)
    held = pytest.raises(OutputError, match="another run is writing it")
    with publishing(out), held, publishing(out):
        pass


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: (d / MODEL).write_text("oNe"), "model.onnx: differs from the hash"),
        (lambda d: (d / MODEL).unlink(), "model.onnx: is named in the manifest and missing"),
        (lambda d: (d / "manifest.json").unlink(), "must be an artifact"),
        (lambda d: (d / "manifest.json").write_text("{"), "must be valid JSON"),
        (lambda d: (d / "manifest.json").write_text("[]"), "must be of schema 1"),
        (lambda d: (d / "manifest.json").write_text('{"a": 1, "a": 2}'), "a name stands twice"),
        (
            lambda d: (d / "manifest.json").write_text(
                '{"schema": 1, "files": {"../secret": {"sha256": ""}, "model/model.onnx": {}}}'
            ),
            "must lie inside the artifact",
        ),
        (lambda d: (d / "model" / "more").write_text(""), "model/more: is not named"),
        (lambda d: (d / "manifest.sig").symlink_to("nowhere"), "manifest.sig: is not named"),
        (lambda d: (d / "manifest.sig").mkdir(), "manifest.sig: is not named"),
        (lambda d: write_manifest(d / "model", {}), "model/manifest.json: is not named"),
        (_link_manifest, "manifest.json: must lie inside the artifact"),
        (
            lambda d: (d / "manifest.json").write_text('{"schema": 1, "files": {}}'),
            "must name model/model.onnx",
        ),
    ],
)
def test_a_damaged_artifact_is_named(tmp_path: Path, damage: object, words: str) -> None:
    out = tmp_path / "out"
    _publish(out, "one")
    damage(out)  # type: ignore[operator]
    with pytest.raises(ArtifactError, match=words):
        load_artifact(out)


def test_a_file_where_the_directory_should_be(tmp_path: Path) -> None:
    file = tmp_path / "out"
    file.write_text("precious")
    with pytest.raises(OutputError, match="must be a directory"), publishing(file):
        pass
    assert file.read_text() == "precious"
