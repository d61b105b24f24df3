"""Fine-tuning recovers, keeps zeros, goes on after a stop as if there had been none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from exporter.compress.batching import training_order
from exporter.compress.finetune import FineTuneResult, fine_tune
from exporter.compress.prune import prune
from exporter.compress.resume import NAME
from exporter.compress.sparsity import sparsity_of, zero_masks
from exporter.errors import DataError
from exporter.models.examples import Calibration, Development, Test, Train
from exporter.progress import Silent
from exporter.recipe import FineTune, Pruning
from tests.compress.conftest import Tiny

Checkpoints = Callable[[str], Tiny]


def _options(**changes: Any) -> FineTune:
    values = {"steps": 12, "batch_size": 4, "learning_rate": 1e-3, "evaluate_every": 4}
    return FineTune(**{**values, **changes})


def _tune(
    tiny: Tiny,
    scratch: Path,
    options: FineTune,
    *,
    student: Any = None,
    distil: bool = True,
    progress: Any = None,
    seed: int = 0,
) -> FineTuneResult:
    return fine_tune(
        tiny.module() if student is None else student,
        tiny.module() if distil else None,
        tiny.task,
        tiny.examples(Train, 48, seed=1),
        tiny.examples(Development, 24, seed=2),
        options,
        seed=seed,
        scratch=scratch,
        progress=progress or Silent(),
    )


class _Stopping(Silent):
    """Stops the run, as Ctrl-C would, after some steps of it; counts what came before."""

    def __init__(self, after: int | None = None) -> None:
        self.after = after
        self.steps: list[int] = []
        self.notes: list[str] = []

    def stage(self, name: str, total: int | None = None) -> Any:
        return self

    def __enter__(self) -> _Stopping:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def advance(self, steps: int = 1) -> None:
        self.steps.append(steps)
        if self.after is not None and sum(self.steps) >= self.after:
            raise KeyboardInterrupt

    def note(self, text: str) -> None:
        self.notes.append(text)


def _equal(one: Any, other: Any) -> bool:
    state = other.state_dict()
    return all(torch.equal(value, state[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("family", ["bert", "qwen3", "vit"])
def test_a_pruned_model_recovers(family: str, tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    tiny = tiny_checkpoint(family)
    pruned = prune(tiny.module(), tiny.task, tiny.examples(Train), Pruning(ffn=0.5)).module
    result = _tune(
        tiny, tmp_path, _options(steps=30, batch_size=8, evaluate_every=10), student=pruned
    )
    first = result.history[0]
    assert first["step"] == 0
    assert first["train_loss"] is None
    assert result.development_loss is not None
    assert result.development_loss < first["development_loss"]  # type: ignore[operator]
    assert result.best_step > 0
    assert not result.module.training
    looked = [entry["development_loss"] for entry in result.history]
    assert result.development_loss == min(value for value in looked if value is not None)


def test_distillation_needs_no_labels(tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    tiny = tiny_checkpoint("bert-encoder")
    # Compensated, so small a model leaves little to recover.
    pruning = Pruning(ffn=0.5, compensate="none")
    pruned = prune(tiny.module(), tiny.task, tiny.examples(Train), pruning).module
    result = _tune(tiny, tmp_path, _options(), student=pruned)
    assert result.best_step > 0
    assert result.development_loss < result.history[0]["development_loss"]  # type: ignore[operator]


def test_nothing_to_learn_from(tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    tiny = tiny_checkpoint("bert-encoder")
    progress = _Stopping()
    result = _tune(tiny, tmp_path, _options(), distil=False, progress=progress)
    assert _equal(result.module, tiny.module())
    assert (result.history, result.best_step, result.development_loss) == ([], 0, None)
    assert "no labels" in progress.notes[0]


def test_equal_training_uses_the_task_alone(tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    tiny = tiny_checkpoint("llama")
    result = _tune(tiny, tmp_path, _options(), distil=False)
    assert result.best_step > 0
    assert not _equal(result.module, tiny.module())


@pytest.mark.parametrize(
    ("family", "stop"),
    [("bert", 3), ("bert", 4), ("bert", 11), ("qwen3", 6), ("mobilenetv2", 6)],
)
def test_stopped_and_resumed_is_straight(
    family: str, stop: int, tiny_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    """Dropout (where there is no teacher), batch norms and optimizer go on bit for bit."""
    tiny = tiny_checkpoint(family)
    distil = family != "bert"
    straight = _tune(tiny, tmp_path / "straight", _options(), distil=distil)
    with pytest.raises(KeyboardInterrupt):
        _tune(tiny, tmp_path / "stopped", _options(), distil=distil, progress=_Stopping(stop))
    # What a kill in the middle of writing leaves beside the checkpoint does no harm.
    (tmp_path / "stopped").mkdir(exist_ok=True)
    (tmp_path / "stopped" / f"{NAME}.new").write_bytes(b"half")
    progress = _Stopping()
    resumed = _tune(tiny, tmp_path / "stopped", _options(), distil=distil, progress=progress)
    assert progress.steps[0] == stop // 4 * 4, "finished steps are not done again"
    assert sum(progress.steps) == 12
    assert _equal(straight.module, resumed.module)
    assert straight.history == resumed.history
    assert straight.best_step == resumed.best_step


def test_a_finished_run_is_not_repeated(tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    tiny = tiny_checkpoint("bert")
    first = _tune(tiny, tmp_path, _options())
    progress = _Stopping()
    again = _tune(tiny, tmp_path, _options(), progress=progress)
    assert progress.steps == [12]
    assert _equal(first.module, again.module)


@pytest.mark.parametrize("spoil", ["other seed", "truncated", "rubbish"])
def test_useless_checkpoints_are_not_used(
    spoil: str, tiny_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    tiny = tiny_checkpoint("bert")
    expected = _tune(tiny, tmp_path / "straight", _options())
    scratch = tmp_path / "scratch"
    _tune(tiny, scratch, _options(), seed=1 if spoil == "other seed" else 0)
    if spoil == "truncated":
        (scratch / NAME).write_bytes((scratch / NAME).read_bytes()[:5000])
    elif spoil == "rubbish":
        (scratch / NAME).write_bytes(b"rubbish")
    found = _tune(tiny, scratch, _options())
    assert _equal(expected.module, found.module)


def test_the_seed_decides(tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    tiny = tiny_checkpoint("bert")
    before = torch.get_rng_state()
    one = _tune(tiny, tmp_path / "1", _options())
    torch.rand(3)
    two = _tune(tiny, tmp_path / "2", _options())
    other = _tune(tiny, tmp_path / "3", _options(), seed=5)
    assert _equal(one.module, two.module)
    assert not _equal(one.module, other.module)
    torch.set_rng_state(before)
    _tune(tiny, tmp_path / "4", _options())
    assert torch.equal(torch.get_rng_state(), before), "the caller's randomness is left alone"


def test_zeros_stay_exactly_zero(tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    tiny = tiny_checkpoint("bert-encoder")
    sparse = prune(tiny.module(), tiny.task, tiny.examples(Train), Pruning(sparsity=0.6)).module
    before = {name: zeros.clone() for name, zeros in zero_masks(sparse).items()}
    share = sparsity_of(sparse)
    values = {name: p.detach().clone() for name, p in sparse.named_parameters()}
    result = _tune(tiny, tmp_path, _options(), student=sparse)
    after = dict(result.module.named_parameters())
    assert result.best_step > 0
    assert all((after[name][zeros] == 0).all() for name, zeros in before.items())
    assert sparsity_of(result.module) == pytest.approx(share, abs=1e-6)
    learning = [name for name in before if "pooler" not in name]
    assert all(not torch.equal(values[name], after[name]) for name in learning)


def test_early_stop_returns_the_best(tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    tiny = tiny_checkpoint("bert")
    options = _options(steps=400, learning_rate=0.5, evaluate_every=2, patience=3)
    result = _tune(tiny, tmp_path, options, distil=False)
    steps = [entry["step"] for entry in result.history]
    assert len(steps) < 100, "it stopped early"
    assert steps[-1] == result.best_step + 2 * 3  # type: ignore[operator]
    if result.best_step == 0:
        assert _equal(result.module, tiny.module())


def test_divergence_keeps_the_best(tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    tiny = tiny_checkpoint("bert")
    student = tiny.module()
    original = tiny.module()
    calls = 0

    def spoil(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        nonlocal calls
        calls += torch.is_grad_enabled()
        if calls > 2:
            output.logits = output.logits * float("nan")
        return output

    student.register_forward_hook(spoil, with_kwargs=True)
    progress = _Stopping()
    result = _tune(tiny, tmp_path, _options(), student=student, progress=progress)
    assert "not finite at step 3" in progress.notes[0]
    assert result.best_step == 0
    assert _equal(original, result.module)


@pytest.mark.parametrize("role", [Test, Calibration, Development])
def test_other_splits_are_refused_for_training(
    role: Any, tiny_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    tiny = tiny_checkpoint("bert")
    module = tiny.module()
    good = tiny.examples(Development)
    with pytest.raises(DataError, match=f"the {role.name} split"):
        fine_tune(
            module, None, tiny.task, tiny.examples(role), good, _options(), seed=0, scratch=tmp_path
        )


def test_choosing_on_test_data_is_refused(tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    tiny = tiny_checkpoint("bert")
    wrong: Any = tiny.examples(Test)
    with pytest.raises(DataError, match="the test split: may not be used"):
        fine_tune(
            tiny.module(),
            tiny.module(),
            tiny.task,
            tiny.examples(Train),
            wrong,
            _options(),
            seed=0,
            scratch=tmp_path,
        )


def test_batches_hold_similar_lengths_and_everything(tiny_checkpoint: Checkpoints) -> None:
    examples = tiny_checkpoint("bert").examples(Train, 42)
    lengths = [len(feed["input_ids"]) for feed in examples.feeds]
    order = training_order(examples, 4, seed=0)
    epochs = [[next(order) for _ in range(10)] for _ in range(12)]
    for epoch in epochs:
        seen = [index for batch in epoch for index in batch]
        assert len(seen) == len(set(seen)) == 40
        padding = sum(
            max(lengths[i] for i in b) * len(b) - sum(lengths[i] for i in b) for b in epoch
        )
        assert padding < 0.1 * sum(lengths)
    assert {i for epoch in epochs for batch in epoch for i in batch} == set(range(42))
    assert epochs[0] != epochs[1]
