"""Installations are whole or not there."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import pytest

from exporter.devices.store import install, installed


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
