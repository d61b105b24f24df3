"""Fine-tuning by itself: ordinary checkpoints in and out, stopped and resumed, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import exporter
from exporter.errors import DataError, ModelError, OutputError, ProfileError
from exporter.models.load import load_checkpoint
from exporter.progress import Silent
from exporter.recovering import FACTS
from tests import chain, tiny

OPTIONS = {"steps": 8, "batch_size": 8, "evaluate_every": 2, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("recovering")
    return {
        "student": tiny.checkpoint("qwen3", root / "student", seed=1),
        "teacher": tiny.checkpoint("qwen3", root / "teacher"),
        "data": chain.text_data(root / "rows.jsonl", 200, labels=False),
        "options": OPTIONS,
    }


class _Stopping(Silent):
    """Ctrl-C in the sixth step."""

    def __init__(self) -> None:
        self.steps = 0

    def stage(self, name: str, total: int | None = None) -> Any:
        return self

    def __enter__(self) -> _Stopping:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def advance(self, steps: int = 1) -> None:
        self.steps += steps
        if self.steps >= 5:
            raise KeyboardInterrupt


def _weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(directory, "text-generation").state_dict()


def test_a_checkpoint_is_trained_on(given: dict[str, Any], tmp_path: Path) -> None:
    made = exporter.fine_tune(**given, out=tmp_path / "out")
    assert made.directory == tmp_path / "out"
    assert json.loads((made.directory / FACTS).read_text()) == made.facts
    assert made.facts["best_step"] > 0
    assert made.facts["options"]["steps"] == 8
    before, after = _weights(given["student"]), _weights(made.directory)
    assert before.keys() == after.keys()
    assert any(not torch.equal(value, after[name]) for name, value in before.items())
    assert (made.directory / "tokenizer.json").is_file()


def test_stopped_and_called_again(given: dict[str, Any], tmp_path: Path) -> None:
    straight = exporter.fine_tune(**given, out=tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        exporter.fine_tune(**given, out=tmp_path / "out", progress=_Stopping())
    assert not (tmp_path / "out").exists()
    assert (tmp_path / ".out.recovery").is_dir()
    resumed = exporter.fine_tune(**given, out=tmp_path / "out")
    assert resumed.facts == straight.facts
    expected = _weights(straight.directory)
    found = _weights(resumed.directory)
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "straight"]


def test_what_does_not_fit_is_refused(given: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    gpt = tiny.checkpoint("gpt2", tmp_path / "gpt")
    told = json.loads((gpt / "tokenizer.json").read_text())
    told["model"]["vocab"] |= {"cat": told["model"]["vocab"]["dog"], "dog": 17}
    (gpt / "tokenizer.json").write_text(json.dumps(told))
    with pytest.raises(ModelError, match=r"the teacher: must have the student's tokenizer"):
        exporter.fine_tune(**{**given, "teacher": gpt}, out=out)
    with pytest.raises(ProfileError, match=r"distill_weight: must be a share from 0 to 1, or"):
        exporter.fine_tune(**{**given, "options": {"distill_weight": 1.5}}, out=out)
    with pytest.raises(ProfileError, match=r"steps: .*see `exporter fine-tune --help`"):
        exporter.fine_tune(**{**given, "options": {"steps": 0}}, out=out)
    with pytest.raises(DataError, match="--data: is missing"):
        exporter.fine_tune(**{**given, "data": None}, out=out)
    with pytest.raises(OutputError, match="exists and was not made by this tool"):
        exporter.fine_tune(**given, out=given["teacher"])
    assert not out.exists()


def test_weights_that_are_no_numbers_are_named(given: dict[str, Any], tmp_path: Path) -> None:
    module: Any = load_checkpoint(given["student"], "text-generation")
    with torch.no_grad():
        module.model.norm.weight[0] = float("nan")
    module.save_pretrained(tmp_path / "nan")
    (tmp_path / "nan" / "tokenizer.json").write_bytes(
        (given["student"] / "tokenizer.json").read_bytes()
    )
    with pytest.raises(ModelError, match=r"norm\.weight"):
        exporter.fine_tune(**{**given, "student": tmp_path / "nan"}, out=tmp_path / "out")
