"""A rising sparsity: the curve, exact zeros whatever the optimizer does, and stops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from exporter.compress.finetune import FineTuneResult, fine_tune
from exporter.compress.importance import score_weights
from exporter.compress.sparsity import sparsify, sparsity_of
from exporter.compress.sparsity_schedule import (
    RAMP,
    RisingSparsity,
    ramp_steps,
    rising,
    sparsity_hook,
)
from exporter.models.examples import Development, Train
from exporter.progress import Silent
from exporter.recipe import FineTune, Pruning
from tests.compress.conftest import Tiny
from tests.compress.test_finetune import _Stopping

Checkpoints = Callable[[str], Tiny]


def _by_size(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return score_weights(module, None, "magnitude")


def _tune(
    tiny: Tiny, scratch: Path, hook: Any, *, steps: int = 20, stop: int = 0
) -> FineTuneResult:
    return fine_tune(
        tiny.module(),
        tiny.module(),
        tiny.task,
        tiny.examples(Train, 48, seed=1),
        tiny.examples(Development, 24, seed=2),
        FineTune(steps=steps, batch_size=4, learning_rate=1e-3, evaluate_every=5),
        seed=0,
        scratch=scratch,
        hooks=[hook],
        progress=_Stopping(stop) if stop else Silent(),
    )


def test_the_curve_is_the_papers() -> None:
    assert rising(0.0, 0.8, 0.0) == 0.0
    assert rising(0.0, 0.8, 1.0) == 0.8 == rising(0.0, 0.8, 7.0)
    assert rising(0.2, 0.8, 0.5) == pytest.approx(0.8 - 0.6 / 8)
    assert rising(0.0, 0.8, 0.5, power=1.0) == pytest.approx(0.4)


@pytest.mark.parametrize("pattern", ["", "1:4"])
def test_zeros_are_exact_after_every_step(pattern: str, tiny_checkpoint: Checkpoints) -> None:
    """Under momentum from before, and a weight decay that would move what it could."""
    module = tiny_checkpoint("bert-encoder").module()
    hook = RisingSparsity(0.75, _by_size, group=4 if pattern else None)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=0.5)
    before: dict[str, torch.Tensor] = {}
    shares = []
    for step in range(1, 31):
        hook.before_step(step, 30, module)
        optimizer.zero_grad()
        ids = torch.randint(5, 37, (2, 9), generator=torch.Generator().manual_seed(step))
        module(input_ids=ids).last_hidden_state.square().mean().backward()
        hook.before_update(module)
        optimizer.step()
        hook.after_step(module)
        zeros = hook.state()["zeros"]
        parameters = dict(module.named_parameters())
        for name, gone in zeros.items():
            assert (parameters[name][gone] == 0).all()
            assert (gone | ~before.get(name, torch.zeros_like(gone))).all(), "zeros stay"
        before = zeros
        shares.append(sparsity_of(module))
        if hook.settled(step, 30):
            assert shares[-1] == pytest.approx(0.75, abs=0.001)
    assert shares == sorted(shares)
    assert shares[0] < 0.3 < shares[3]
    assert shares[-1] == shares[ramp_steps(30) - 1]


@pytest.mark.parametrize("stop", [7, 11, 17])
def test_stopped_and_resumed_is_straight(
    stop: int, tiny_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    tiny = tiny_checkpoint("bert")

    def hook() -> Any:
        pruning = Pruning(sparsity=0.6, sparsity_schedule="cubic", sparsity_scope="global")
        return sparsity_hook(tiny.module(), tiny.task, tiny.examples(Train, 4), pruning)

    straight = _tune(tiny, tmp_path / "straight", hook())
    with pytest.raises(KeyboardInterrupt):
        _tune(tiny, tmp_path / "stopped", hook(), stop=stop)
    resumed = _tune(tiny, tmp_path / "stopped", hook())
    found = resumed.module.state_dict()
    assert all(torch.equal(v, found[n]) for n, v in straight.module.state_dict().items())
    assert straight.history == resumed.history
    assert sparsity_of(resumed.module) == pytest.approx(0.6, abs=0.001)


def test_only_what_is_sparse_enough_is_kept(tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    """The dense student would win every look at development data."""
    result = _tune(tiny_checkpoint("bert"), tmp_path, RisingSparsity(0.9, _by_size))
    assert result.best_step >= RAMP * 20
    assert sparsity_of(result.module) == pytest.approx(0.9, abs=0.001)


def test_a_rise_goes_on_from_the_zeros_there_are(tiny_checkpoint: Checkpoints) -> None:
    module = tiny_checkpoint("bert").module()
    sparse = sparsify(module, 0.5, _by_size(module))
    hook = RisingSparsity(0.8, _by_size)
    hook.before_step(1, 10, sparse)
    assert 0.5 <= sparsity_of(sparse) < 0.7
