"""Installations are whole or not there."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from exporter.devices.store import install, installed, place


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPORTER_CACHE", str(tmp_path))


def test_an_installation_is_made_once_for_its_contents() -> None:
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "file").write_text("here")

    first = install("thing", {"version": 1}, make)
    assert (first / "file").read_text() == "here"
    assert install("thing", {"version": 1}, make) == first == installed("thing", {"version": 1})
    assert len(made) == 1
    assert install("thing", {"version": 2}, make) != first


def test_one_that_was_cut_does_not_count() -> None:
    def cut(folder: Path) -> None:
        (folder / "half").write_text("")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        install("thing", {}, cut)
    assert installed("thing", {}) is None
    found = install("thing", {}, lambda folder: (folder / "whole").touch())
    assert [p.name for p in found.iterdir()] == ["whole"]


def test_two_at_once_make_it_once() -> None:
    made = []
    inside = threading.Barrier(2, timeout=0.5)

    def make(folder: Path) -> None:
        made.append(folder)
        with contextlib.suppress(threading.BrokenBarrierError):
            inside.wait()  # nobody else comes
        (folder / "file").touch()

    threads = [threading.Thread(target=install, args=("thing", {}, make)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert installed("thing", {}) is not None


def _make(folder: Path) -> None:
    (folder / "file").touch()


def _by_another_process(version: int, *, then: str = "") -> subprocess.Popen[str]:
    code = f"""
from exporter.devices.store import install
install("thing", {{"version": {version}}}, lambda folder: (folder / "file").touch())
print("made", flush=True)
{then}
"""
    made = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert made.stdout is not None
    assert made.stdout.readline() == "made\n"
    return made


def _age(version: int) -> None:
    """Make it look unused for long."""
    old = place("thing", {"version": version})
    for path in old.parent.glob(f"{old.name}*"):
        os.utime(path, (0, 0))


def test_what_is_superseded_goes_when_it_is_long_unused() -> None:
    _by_another_process(1).communicate()
    _by_another_process(2).communicate()
    cut = place("thing", {"version": 3}).with_suffix(".new")
    cut.mkdir()
    os.utime(cut, (0, 0))
    others = [install("thing-else", {}, _make), install("other", {}, _make)]
    for path in others:
        os.utime(path, (0, 0))
    _age(1)
    install("thing", {"version": 4}, _make)
    assert installed("thing", {"version": 1}) is None
    assert installed("thing", {"version": 2})  # another version of the tool may want it
    assert not cut.exists()
    assert all(path.is_dir() for path in others)
    _by_another_process(1).communicate()
    assert (place("thing", {"version": 1}) / "file").is_file()


def test_what_a_process_uses_stays() -> None:
    using = _by_another_process(1, then="input()")
    install("thing", {"version": 2}, _make)
    for version in (1, 2):
        _age(version)
    _by_another_process(3).communicate()  # this process uses 2
    assert installed("thing", {"version": 1})
    assert installed("thing", {"version": 2})
    using.communicate("\n")


def test_one_that_is_not_made_supersedes_nothing() -> None:
    _by_another_process(1).communicate()
    _age(1)

    def fail(folder: Path) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        install("thing", {"version": 2}, fail)
    assert installed("thing", {"version": 1})
