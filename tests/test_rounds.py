"""A bold candidate through the stages: pruned and recovered in turns, kept round by round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from exporter import checkpoints, stages
from exporter.cache import Cache
from exporter.models.source import resolve_source
from exporter.models.splits import make_splits
from exporter.models.tasks import get_task
from exporter.progress import Silent
from exporter.recipe import Candidate, Recipe
from exporter.rounds import Recovered, recovered
from exporter.stages import Context
from tests import chain, tiny

CANDIDATE: dict[str, Any] = {
    "name": "bold",
    "pruning": {"ffn": 0.875, "sparsity": 0.5, "examples": 8},
    "fine_tune": {**chain.FINE_TUNE, "steps": 7},
}


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    root = tmp_path_factory.mktemp("rounds")
    source = resolve_source(str(tiny.checkpoint("qwen3", root / "qwen3")), task=None)
    recipe = Recipe.model_validate({"candidates": [CANDIDATE]})
    target = chain.quick_target()
    task = get_task(source.task)
    return Context(source, task, target, recipe, Cache(root / "cache"), Silent(), False)


def _recovered(context: Context, candidate: Candidate, root: Path) -> Recovered:
    data = str(chain.text_data(root / "rows.jsonl", 160, labels=False))
    splits = make_splits(data, context.task)
    train = stages.prepare(context, splits.train)
    development = stages.prepare(context, splits.development)
    return recovered(context, candidate, lambda: None, train, development)


def test_rounds_share_the_steps_and_end_in_one_checkpoint(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    students: list[tuple[Any, Any, int]] = []
    real = checkpoints.fine_tuned

    def spying(within: Any, student: Any, teacher: Any, options: Any, *a: Any, **k: Any) -> Any:
        students.append((student.key, teacher, options.steps))
        return real(within, student, teacher, options, *a, **k)

    monkeypatch.setattr(checkpoints, "fine_tuned", spying)
    candidate = context.recipe.candidates[0]
    done = _recovered(context, candidate, tmp_path)
    assert done.removed is not None
    assert done.recovery is not None
    assert done.checkpoint is not None
    assert done.removed["rounds"] == len(students) == 2
    assert [steps for _, _, steps in students] == [3, 4]
    assert all(teacher is None for _, teacher, _ in students), "the teacher stays the original"
    assert done.removed["ffn"]["before"] == 64
    assert done.removed["ffn"]["after"] == 8
    assert done.removed["sparsity"] == pytest.approx(0.5, abs=0.05)
    steps = [entry["step"] for entry in done.recovery["history"]]
    assert steps[0] == 0
    assert steps[-1] == 7
    assert steps == sorted(steps)
    again = _recovered(context, candidate, tmp_path)
    assert again.checkpoint == done.checkpoint, "finished rounds are not done again"
    assert again.recovery == done.recovery


def test_all_at_once_if_the_recipe_says_so(context: Context, tmp_path: Path) -> None:
    changed = {**CANDIDATE, "fine_tune": {**CANDIDATE["fine_tune"], "largest_cut": 1.0}}
    done = _recovered(context, Candidate.model_validate(changed), tmp_path)
    assert done.removed is not None
    assert "rounds" not in done.removed


def test_a_cut_without_recovery_is_one(context: Context, tmp_path: Path) -> None:
    done = _recovered(context, Candidate.model_validate({**CANDIDATE, "fine_tune": None}), tmp_path)
    assert done.recovery is None
    assert done.removed is not None
    assert done.removed["ffn"]["after"] == 8
    assert "rounds" not in done.removed
