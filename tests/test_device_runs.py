"""Jobs on devices and their cache: what decides an answer is in its key."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from exporter.cache import Cache
from exporter.device_runs import cached, cached_smallest, settings_of
from exporter.devices.device import CostUnit, Device, Job, Ran, Traits
from exporter.progress import Silent
from exporter.target import DeviceEntry, Target, Workload, load_target
from tests.devices.graphs import product

X = {"x": np.arange(8, dtype=np.float32)[None]}
ENTRY = DeviceEntry(name="board:arm64")


class Counting(Device):
    """Tells how often it was asked."""

    def __init__(self, cost: CostUnit, cpu: str = "a", version: str = "1") -> None:
        self.traits = Traits(cpu, cpu, "arm64", emulated=True, cost=cost)
        self.version, self.asked = version, 0

    @property
    def identity(self) -> str:
        return self.version

    def run(self, job: Job, **options: Any) -> Ran:
        self.asked += 1
        outputs = tuple({"y": call["x"] + 1} for call in job.calls)
        return Ran(outputs, tokens=np.array([[3]]), costs={"run": (5.0, 5.0)}, runtime="1.27")


@pytest.fixture
def context(tmp_path: Path) -> Any:
    target = load_target("edge")
    return SimpleNamespace(cache=Cache(tmp_path / "cache"), progress=Silent(), target=target)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(product(tmp_path / "m", 8).directory, (X,), X)


def test_what_is_counted_is_asked_once_and_told_whole(context: Any, job: Job) -> None:
    device = Counting("instructions")
    first, again = (cached(context, ENTRY)(device, job) for _ in range(2))
    assert device.asked == 1
    np.testing.assert_array_equal(again.outputs[0]["y"], X["x"] + 1)
    np.testing.assert_array_equal(again.tokens, first.tokens)
    assert replace(again, outputs=(), tokens=None) == replace(first, outputs=(), tokens=None)


@pytest.mark.parametrize("cost", ["ms", "throttled_ms", None])
def test_what_differs_each_time_is_asked_each_time(context: Any, job: Job, cost: Any) -> None:
    device = Counting(cost)
    for _ in range(2):
        cached(context, ENTRY)(device, job)
    assert device.asked == 2


def test_another_cpu_or_emulator_is_asked_anew(context: Any, job: Job) -> None:
    devices = [Counting("instructions", *which) for which in (("a", "1"), ("b", "1"), ("a", "2"))]
    for device in devices:
        cached(context, ENTRY)(device, job)
    assert [device.asked for device in devices] == [1, 1, 1]


def test_another_job_is_asked_anew(context: Any, job: Job, tmp_path: Path) -> None:
    session = Path(shutil.copytree(job.model, tmp_path / "session"))
    (session / "session.json").write_text('{"disabled_optimizers": ["GemmActivationFusion"]}')
    others = [
        replace(job, model=product(tmp_path / "other", 8, seed=1).directory),
        replace(job, model=session),
        replace(job, calls=({"x": X["x"] * 2},)),
        replace(job, feeds={"x": X["x"] * 2}),
        replace(job, feeds=None),
        replace(job, workload=Workload(decode_tokens=9)),
        replace(job, repeats=5),
    ]
    device = Counting("instructions")
    for one in (job, *others):
        cached(context, ENTRY)(device, one)
    assert device.asked == 1 + len(others)


@dataclass(frozen=True)
class _Board:
    """Its settings are what it is."""

    identity: str


def test_a_board_has_the_memory_of_the_profile_and_is_searched_once(
    context: Any, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[tuple[int, int]] = []

    def search(factory: Any, job: Job, low: int, high: int, **options: Any) -> int:
        assert f"'memory_mib': {low}" in factory({"memory_mib": low}).identity
        searched.append((low, high))
        return low + 16

    monkeypatch.setattr(
        "exporter.device_runs.open_device", lambda name, settings: _Board(repr(settings))
    )
    monkeypatch.setattr("exporter.device_runs.smallest_memory", search)
    found = [cached_smallest(context, ENTRY, job) for _ in range(2)]
    memory_mib = context.target.memory_mib
    assert searched == [(64, memory_mib)]
    assert found == [80, 80]
    context.target = context.target.model_copy(update={"memory_mib": memory_mib * 2})
    cached_smallest(context, ENTRY, job)
    assert searched[1:] == [(64, memory_mib * 2)]


def test_a_device_is_opened_with_what_the_profile_says() -> None:
    target: Target = load_target("edge")
    entry = DeviceEntry(name="board:arm64", cpu="cortex-a72")
    told = settings_of(entry, target)
    assert (told["memory_mib"], told["cpu"]) == (target.memory_mib, "cortex-a72")
    assert "python" not in told
