"""The key of a stage names everything that decides its result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from exporter import building, stages
from exporter.graph.model import OnnxModel
from exporter.models.examples import Calibration, Examples
from exporter.recipe import Candidate
from exporter.stages import Built, Prepared
from exporter.target import load_target


class Keyed(Exception):
    """Raised with the inputs of a stage instead of running it."""


@pytest.fixture
def keyed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], list[Any]]:
    """The feeds in the key of a stage, for three different feeds and the first again."""

    def stop(*arguments: Any) -> None:
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
