"""Single weights become exactly zero, in the share that was asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from exporter.compress.importance import prunable_weights, score_weights
from exporter.compress.sparsity import sparsify, sparsity_of, zero_masks
from exporter.models.examples import Train
from exporter.models.load import load_checkpoint
from tests.compress.conftest import Tiny

Checkpoints = Callable[[str], Tiny]


@pytest.mark.parametrize("family", ["bert", "gpt2", "mobilenetv2"])
def test_the_share_is_exact_and_permanent(
    family: str, tiny_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    tiny = tiny_checkpoint(family)
    module = tiny.module()
    sparse = sparsify(module, 0.5, score_weights(module, tiny.examples(Train, 4)))
    assert sparsity_of(sparse) == pytest.approx(0.5, abs=0.01)
    assert sparsity_of(module) < 0.01, "the given module is left alone"
    assert set(sparse.state_dict()) == set(module.state_dict()), "no masks are left behind"
    sparse.save_pretrained(tmp_path)  # type: ignore[operator]
    masks = zero_masks(load_checkpoint(tmp_path, tiny.task.name))
    assert all(torch.equal(masks[name], zeros) for name, zeros in zero_masks(sparse).items())


def test_the_least_important_go(tiny_checkpoint: Checkpoints) -> None:
    module = tiny_checkpoint("bert").module()
    scores = score_weights(module, None, "magnitude")
    sparse = sparsify(module, 0.3, scores)
    before, after = dict(module.named_parameters()), dict(sparse.named_parameters())
    for name in prunable_weights(module):
        gone = after[name] == 0
        assert before[name][gone].abs().max() <= before[name][~gone].abs().min()
        assert torch.equal(before[name][~gone], after[name][~gone])


def test_wanda_takes_the_same_from_every_row(tiny_checkpoint: Checkpoints) -> None:
    tiny = tiny_checkpoint("bert")
    module = tiny.module()
    sparse = sparsify(module, 0.5, score_weights(module, tiny.examples(Train)))
    zeros = zero_masks(sparse)["bert.encoder.layer.0.intermediate.dense.weight"].sum(1)
    assert zeros.min() == zeros.max() == 16


def test_matrices_that_are_all_zero_may_learn() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    torch.nn.init.zeros_(module[0].weight)
    assert zero_masks(module) == {}
