"""Two processes train as one does: other data each, the same weights, one that writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from exporter.compress.batching import training_order
from exporter.compress.replicas import check_parts, parts
from exporter.errors import DataError
from exporter.models.examples import Train
from exporter.models.load import load_checkpoint, preprocessor_from
from exporter.models.tasks import get_task
from exporter.recovering import FACTS, fine_tune
from tests import chain, tiny
from tests.compress.conftest import TASK_OF, Tiny
from tests.compress.replica_run import FAMILIES, tuned

Checkpoints = Callable[[str], Tiny]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")


def _torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    # A port of the system's choosing: tests run beside each other.
    started = [*TORCHRUN, "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    return subprocess.run(
        [*started, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes came to; see replica_run."""
    root = tmp_path_factory.mktemp("both")
    for family in FAMILIES:
        tiny.checkpoint(family, root / "checkpoints" / family)
    done = _torchrun("-m", "tests.compress.replica_run", root / "checkpoints", root)
    assert done.returncode == 0, done.stderr[-3000:]
    return root


def _state(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return state


def _facts(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(path.read_text())
    return facts


def _equal(one: Path, other: Path) -> bool:
    ours, theirs = _state(one), _state(other)
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_replicas_end_identical(family: str, both: Path) -> None:
    assert _equal(both / f"{family}-0.pt", both / f"{family}-1.pt")
    assert (
        _facts(both / f"{family}-0.json")["history"] == _facts(both / f"{family}-1.json")["history"]
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_processes_see_each_example_once(family: str, both: Path) -> None:
    ours, theirs = (_facts(both / f"{family}-{rank}.json")["seen"] for rank in (0, 1))
    assert len(ours) == len(theirs) == 8
    for one, other in zip(ours, theirs, strict=True):
        assert len({*one, *other}) == len(one) + len(other) == 8
    epoch = [index for step in range(5) for index in (*ours[step], *theirs[step])]
    assert len(set(epoch)) == 40


@pytest.mark.parametrize("family", ["bert-encoder", "qwen3"])
def test_as_one_process_would(family: str, both: Path, tmp_path: Path) -> None:
    """Token means, an unused pooler and accumulation included; only sums are in another order."""
    model = Tiny(family, both / "checkpoints" / family, get_task(TASK_OF[family]))
    alone = tuned(model, tmp_path)
    before = model.module().state_dict()
    together = _state(both / f"{family}-0.pt")
    moved = 0.0
    for name, value in alone.module.state_dict().items():
        torch.testing.assert_close(together[name], value, atol=3e-5, rtol=1e-4)
        if value.shape == before[name].shape:
            moved = max(moved, float((value - before[name]).abs().max()))
    assert moved > 1e-3, "training changed something to compare"
    for ours, theirs in zip(
        alone.history, _facts(both / f"{family}-1.json")["history"], strict=True
    ):
        assert theirs["development_loss"] == pytest.approx(ours["development_loss"], rel=1e-4)
        if ours["train_loss"] is not None:
            assert theirs["train_loss"] == pytest.approx(ours["train_loss"], rel=1e-3)


def test_stopped_and_resumed_together(both: Path) -> None:
    """Also in the process whose scratch is empty: it goes on from what the first one kept."""
    assert [_facts(both / f"resumed-{rank}.json")["steps"] for rank in (0, 1)] == [4, 4]
    assert _equal(both / "resumed-0.pt", both / "resumed-1.pt")
    assert _equal(both / "resumed-0.pt", both / "again-1.pt")


def test_only_the_first_process_writes(both: Path) -> None:
    assert list(both.glob("scratch-*-0/checkpoint.pt"))
    assert not [*both.glob("scratch-*-1"), *both.glob("stopped-1"), *both.glob("straight-1")]


def test_the_command_under_torchrun(tmp_path: Path) -> None:
    """One line of result, an ordinary checkpoint, and close to what one process makes."""
    tiny.checkpoint("bert", tmp_path / "teacher")
    tiny.checkpoint("bert", tmp_path / "student", seed=1)
    data = chain.text_data(tmp_path / "rows.jsonl", 200)
    arguments = [
        "-m", "exporter", "fine-tune", tmp_path / "student", "--teacher", tmp_path / "teacher",
        "-d", data, "--steps", "4", "--batch-size", "8", "--out",
    ]  # fmt: skip
    together = _torchrun(*arguments, tmp_path / "two")
    assert together.returncode == 0, together.stderr
    assert together.stdout.count("development loss") == together.stdout.count("checkpoint:") == 1
    alone = fine_tune(
        tmp_path / "student",
        teacher=tmp_path / "teacher",
        data=data,
        out=tmp_path / "one",
        options={"steps": 4, "batch_size": 8},
    )
    assert alone.facts == json.loads((tmp_path / "one" / FACTS).read_text())
    one, two = (load_checkpoint(tmp_path / n, "text-classification") for n in ("one", "two"))
    assert preprocessor_from(tmp_path / "two", "text-classification") is not None
    other = two.state_dict()
    for name, value in one.state_dict().items():
        torch.testing.assert_close(other[name], value, atol=3e-5, rtol=1e-4)
    assert not list(tmp_path.glob(".*")), "no scratch is left"


@pytest.mark.parametrize(("processes", "accumulate"), [(1, 1), (1, 3), (2, 1), (3, 2)])
def test_parts_make_up_the_batch(
    processes: int, accumulate: int, tiny_checkpoint: Checkpoints
) -> None:
    model = tiny_checkpoint("llama")
    examples = model.examples(Train, 30)
    chosen = next(training_order(examples, 8, seed=0))
    found = [
        part
        for process in range(processes)
        for part in parts(
            chosen,
            examples,
            model.task,
            process=process,
            processes=processes,
            accumulate=accumulate,
        )
    ]
    assert len(found) == processes * accumulate
    assert sorted(i for indices, _ in found for i in indices) == sorted(chosen)
    for which in ("own", "distilled", "feeds"):
        total = sum(getattr(share, which) for _, share in found)
        assert total == pytest.approx(processes)


def test_too_many_processes_are_refused(tiny_checkpoint: Checkpoints) -> None:
    examples = tiny_checkpoint("bert").examples(Train, 6)
    check_parts(examples, 8, processes=3, accumulate=2)
    with pytest.raises(DataError, match=r"each of 4 processes × 2 accumulated parts, got 6"):
        check_parts(examples, 8, processes=4, accumulate=2)
    with pytest.raises(DataError, match=r"fine_tune.batch_size: .*, got 2"):
        check_parts(examples, 2, processes=3, accumulate=1)
