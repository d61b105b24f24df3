"""What decides a stage's result is in its key: nothing else is taken for it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import exporter
from exporter.artifact import load_artifact
from exporter.cache import Cache
from exporter.graph.model import OnnxModel
from exporter.models.examples import Examples, Test
from exporter.models.scores import Scores, load_scores
from exporter.models.source import resolve_source
from exporter.models.splits import make_splits
from exporter.models.tasks import get_task
from exporter.progress import Silent
from exporter.stages import Built, Context, Prepared, measured, scored
from tests import chain, tiny
from tests.judge.test_gate import _measurements

QUICK = {"calibration_examples": 16, "candidates": chain.RECIPE["candidates"][:1]}


def _grouped(path: Path) -> Path:
    """Sentences from two sources."""
    rows = [
        {"text": text, "label": tiny.label_of(text), "source": ("web", "mail")[i % 2]}
        for i, text in enumerate(tiny.sentences(400))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_slice_named_after_a_run_without_one_is_shown(tmp_path: Path) -> None:
    """And what is judged in the end, with or without groups, are the test examples."""
    model = tiny.checkpoint("bert", tmp_path / "bert")
    data = _grouped(tmp_path / "rows.jsonl")

    def run(name: str, **options: Any) -> exporter.Result:
        return exporter.export(
            model,
            data=data,
            target=chain.quick_target(recipe=QUICK, accuracy_drop_points=30),
            out=tmp_path / name,
            cache=tmp_path / "cache",
            **options,
        )

    plain = run("plain")
    assert {row.grouping for row in plain.report.slices} == {"label"}
    by_source = run("by-source", slices=["source"])
    rows = {(row.grouping, row.name): row for row in by_source.report.slices}
    assert {name for grouping, name in rows if grouping == "source"} == {"web", "mail"}
    test = make_splits(str(data), get_task("text-classification"), slices=["source"]).test
    assert sum(row.count for (grouping, _), row in rows.items() if grouping == "source") == len(
        test
    )
    for result in (plain, by_source):
        for name in ("reference", "candidate"):
            evidence = load_scores(result.directory / "evidence", name)
            assert set(evidence.ids) == set(test.ids)
    keys = [load_artifact(r.directory).manifest["stages"]["candidate"] for r in (plain, by_source)]
    assert keys[0] == keys[1]  # groups divide what is judged, and change no model


@pytest.fixture
def context(tmp_path: Path) -> Context:
    source = resolve_source(str(tiny.checkpoint("bert", tmp_path / "bert")), task=None)
    target = chain.quick_target(latency_ratio=0.8)
    task = get_task(source.task)
    return Context(source, task, target, target.recipe, Cache(tmp_path / "cache"), Silent())


def _built(name: str) -> Built:
    return Built(OnnxModel(Path(name)), name, {})


def test_a_timing_that_was_not_to_decide_is_none_that_does(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []

    def measure(*_: Any, until: Any, **__: Any) -> Any:
        taken.append(until)
        return replace(_measurements(), looks=() if until is None else (60,))

    monkeypatch.setattr("exporter.stages.measure", measure)
    strict = replace(context, target=chain.quick_target(latency_ratio=0.7))
    wanted = [(context, False), (context, True), (strict, True), (strict, False)]
    for _ in range(2):
        for asked, decide in wanted:
            found = measured(asked, _built("a"), _built("b"), {}, 5, decide=decide)
            assert bool(found.looks) == decide
    assert taken == [None, context.target, strict.target]


def test_scores_against_one_reference_are_none_against_another(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str | None] = []

    def answers(*_: Any, against: OnnxModel | None, **__: Any) -> Scores:
        taken.append(str(against.directory) if against else None)
        return Scores("text-generation", ("x",), {"nll": np.ones(1) * len(taken)})

    monkeypatch.setattr("exporter.stages.answers", answers)
    prepared = Prepared(Examples(Test, ("x",), (), (), None, {}), "examples")
    for _ in range(2):
        for number, against in enumerate((None, _built("a"), _built("b")), 1):
            found = scored(context, _built("m"), prepared, against)
            assert found.values["nll"][0] == number
    assert taken == [None, "a", "b"]
