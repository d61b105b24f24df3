"""A whole emulated board: what this machine, or a faked limit, could not answer."""

from __future__ import annotations

import os
import subprocess
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.devices.board import Board
from exporter.devices.device import Job
from exporter.devices.registry import kind_of, open_device
from exporter.devices.smallest import memory_bounds_mib, smallest_memory
from exporter.errors import (
    DeviceDisk,
    DeviceKilled,
    DeviceRefused,
    DeviceTimeout,
    ExporterError,
    ProfileError,
)
from exporter.graph.model import OnnxModel
from exporter.graph.session import open_run
from exporter.progress import Silent
from tests.devices.graphs import product

WIDTH = 3200  # of a model with 39 MiB of weights
TINY = {"x": np.arange(8, dtype=np.float32)[None] / 8}


def board(**settings: Any) -> Board:
    """A board, installed; skips the test where that cannot be."""
    reason = _why_not()
    if reason:
        pytest.skip(f"{reason} To have it: exporter devices install board")
    opened = open_device("board:arm64", settings)
    assert isinstance(opened, Board)
    return opened


@cache
def _why_not() -> str:
    kind, option = kind_of("board")
    lacks = kind.missing(option)
    if not all(missing.installable for missing in lacks):
        return f"{', '.join(missing.what for missing in lacks)} is missing."
    try:
        kind.install(Silent())
    except ExporterError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Job:
    x = {"x": np.random.default_rng(1).normal(size=(1, WIDTH)).astype(np.float32)}
    model = product(tmp_path_factory.mktemp("wide"), WIDTH)
    return Job(model.directory, (x,), x, repeats=2)


def test_two_boots_answer_as_this_machine_and_take_the_same_time(tmp_path: Path) -> None:
    model = product(tmp_path / "m", 8)
    job = Job(model.directory, (TINY,), TINY, repeats=2)
    first, second = (board().run(job, timeout_s=120) for _ in range(2))
    np.testing.assert_allclose(first.outputs[0]["y"], open_run(model)(TINY)["y"], atol=1e-4)
    assert first.facts["machine"] == "aarch64"
    assert first.facts["kernel"].endswith("-arm64")
    # Its own kernel has taken its part of 512 MiB.
    assert 450 < first.facts["memory_seen_mib"] < 512
    assert (first.costs, first.load_cost) == (second.costs, second.load_cost)
    assert first.facts == second.facts
    assert (first.heap_mib, first.peak_mib) == (second.heap_mib, second.peak_mib)
    # Guest seconds: one instruction each nanosecond, thousands for one call.
    assert all(1e-6 < cost < 1e-2 for cost in first.costs["run"])
    assert 20 < (first.peak_mib or 0) < 200
    assert _left() == []


def test_a_model_is_killed_by_too_little_memory_and_runs_with_more(wide: Job) -> None:
    with pytest.raises(DeviceKilled, match="killed at 112 MiB"):
        board(memory_mib=112).run(wide, timeout_s=120)
    ran = board(memory_mib=256).run(wide, timeout_s=120)
    want = open_run(OnnxModel(wide.model))(wide.calls[0])["y"]
    np.testing.assert_allclose(ran.outputs[0]["y"] / want.std(), want / want.std(), atol=1e-4)
    assert (ran.peak_mib or 0) > 39
    assert _left() == []


def test_time_is_over_and_no_emulator_is_left(tmp_path: Path) -> None:
    job = Job(product(tmp_path / "m", 8).directory, (TINY,))
    with pytest.raises(DeviceTimeout, match="not finished after 1 s"):
        board().run(job, timeout_s=1)
    assert _left() == []


def test_its_disk_is_full(tmp_path: Path) -> None:
    rows = {"x": np.ones((100_000, 8), np.float32)}  # 3 MiB of answers
    job = Job(product(tmp_path / "m", 8).directory, (rows, rows, rows))
    with pytest.raises(DeviceDisk):
        board(disk_mib=1).run(job, timeout_s=120)


def test_each_size_has_its_own_identity() -> None:
    """What is cached by it must not be taken for another board's."""
    changed: tuple[dict[str, Any], ...] = (
        {},
        {"memory_mib": 128},
        {"disk_mib": 9},
        {"limit_guest_s": 5},
        {"cpu": "cortex-a53"},
    )
    assert len({board(**settings).identity for settings in changed}) == len(changed)
    assert board().identity == board().identity


def test_settings_are_checked() -> None:
    for settings in ({"cpu": "z80"}, {"memory_mib": 0}, {"memory_mib": "much"}):
        with pytest.raises(ProfileError, match="board:arm64: "):
            board(**settings)


@pytest.mark.slow
def test_a_model_that_its_runtime_refuses(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\x07not a model")
    with pytest.raises(DeviceRefused, match="board:arm64: "):
        board().run(Job(tmp_path), timeout_s=120)


@pytest.mark.slow
@pytest.mark.parametrize("memory_mib", [16, 40, 56])
def test_a_board_that_can_hardly_start_is_short_of_memory(tmp_path: Path, memory_mib: int) -> None:
    job = Job(product(tmp_path / "m", 8).directory, (TINY,))
    with pytest.raises(DeviceKilled, match=f"killed at {memory_mib} MiB"):
        board(memory_mib=memory_mib).run(job, timeout_s=120)


@pytest.mark.slow
def test_the_smallest_memory_runs_and_one_step_less_does_not(wide: Job) -> None:
    board()
    low, high = memory_bounds_mib(wide.model)
    factory = partial(open_device, "board:arm64")
    found = smallest_memory(factory, wide, low, high, timeout_s=120)
    assert found is not None
    assert 112 < found <= 256
    with pytest.raises((DeviceKilled, DeviceTimeout)):
        board(memory_mib=found - 16, limit_guest_s=10).run(wide, timeout_s=120)
    assert smallest_memory(factory, wide, low, 96, timeout_s=120) is None


def _left() -> list[str]:
    """Emulators of boards that this process has started and that still run."""
    done = subprocess.run(["ps", "-eo", "ppid,args"], capture_output=True, text=True, check=True)
    return [
        line
        for line in done.stdout.splitlines()
        if "qemu-system-aarch64" in line and line.split()[0] in ("1", str(os.getpid()))
    ]
