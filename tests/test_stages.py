"""The key of a stage names everything that decides its result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from exporter import building, stages
from exporter.cache import Cache
from exporter.devices.timing import Memory
from exporter.graph.model import OnnxModel
from exporter.judge.measure import Measurements
from exporter.judge.size import Size
from exporter.models.examples import Calibration, Examples
from exporter.progress import Silent
from exporter.recipe import Candidate
from exporter.stages import Built, Prepared
from exporter.target import Workload, load_target


class Keyed(Exception):
    """Raised with the inputs of a stage instead of running it."""


@pytest.fixture
def keyed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], list[Any]]:
    """The feeds in the key of a stage, for three different feeds and the first again."""

    def stop(*arguments: Any, **_: Any) -> None:
        raise Keyed(arguments[4])

    monkeypatch.setattr(stages, "run_stage", stop)
    monkeypatch.setattr(building, "run_stage", stop)

    def keys(stage: Callable[..., Any]) -> list[Any]:
        found = []
        ids = np.arange(4).reshape(1, 4)
        for feeds in ({"ids": ids}, {"ids": ids + 1}, {"ids": ids.reshape(2, 2)}, {"ids": ids}):
            with pytest.raises(Keyed) as caught:
                stage(feeds)
            found.append(caught.value.args[0])
        return found

    return keys


def _context() -> Any:
    return SimpleNamespace(target=load_target("mobile"))


def _timed(ratios: tuple[float, float]) -> Measurements:
    """Every other round at each ratio."""
    return Measurements(
        {"cpu": "cpu", "isa": "none", "features": []},
        Workload(),
        1,
        {"reference": {"run": [10.0] * 20}, "candidate": {"run": [10.0 * r for r in ratios] * 10}},
        Size(400, 300),
        Size(100, 90),
        Memory(300.0, 50.0),
        (Memory(200.0, 50.0),),
        looks=(20,),
    )


def test_a_latency_that_was_left_undecided_is_measured_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine may be quieter now; what is decided stays, and so does the choice's timing."""
    undecided, decided = _timed((0.3, 0.9)), _timed((0.3, 0.31))
    coming = [undecided, undecided, undecided, decided]
    monkeypatch.setattr(stages, "measure", lambda *_, **__: coming.pop(0))
    built = _built(tmp_path)

    def run(*decide: bool) -> list[list[float]]:
        context: Any = SimpleNamespace(
            target=load_target("mobile"),
            recipe=SimpleNamespace(seed=0),
            task=SimpleNamespace(name="text-classification"),
            cache=Cache(tmp_path / "cache"),
            progress=Silent(),
        )
        feeds = {"ids": np.arange(4)}
        return [
            stages.measured(context, built, built, feeds, 3, decide=final).times_ms["candidate"][
                "run"
            ][:2]
            for final in decide
        ]

    assert run(False) == run(False) == [[3.0, 9.0]]
    assert len(coming) == 3
    assert run(True, True) == [[3.0, 9.0]] * 2
    assert len(coming) == 2  # one run measures once
    assert run(True, True) == [[3.0, 9.0]] * 2
    assert len(coming) == 1
    assert run(True) == run(True) == [[3.0, 3.1]]
    assert not coming


def _built(tmp_path: Path) -> Built:
    return Built(OnnxModel(tmp_path), "k", {})


def test_feeds_are_in_the_key_of_a_timing(tmp_path: Path, keyed: Any) -> None:
    built = _built(tmp_path)
    keys = keyed(lambda feeds: stages.measured(_context(), built, built, feeds, 3))
    assert keys[0] == keys[3]
    assert keys[0] != keys[1] != keys[2] != keys[0]


def test_feeds_are_in_the_key_of_quantization(tmp_path: Path, keyed: Any) -> None:
    """They decide which fusions are the fastest."""
    calibration = Prepared(Examples(Calibration, (), (), (), None, {}), "c")
    candidate = Candidate(name="c", quantization="dynamic-int8")
    keys = keyed(
        lambda feeds: building.quantized(
            _context(), _built(tmp_path), candidate, calibration, feeds
        )
    )
    assert keys[0] == keys[3]
    assert keys[0] != keys[1] != keys[2] != keys[0]
