"""Single weights become exactly zero, in the share that was asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from exporter.compress.importance import prunable_weights, score_weights
from exporter.compress.prune import prune
from exporter.compress.sparsity import choose_zeros, sparsify, sparsity_of, zero_masks
from exporter.compress.sparsity_schedule import sparsity_hook
from exporter.compress.structure import is_transposed
from exporter.errors import ModelError
from exporter.models.examples import Train
from exporter.models.load import load_checkpoint
from exporter.recipe import Candidate, FineTune, Pruning
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


def _random_scores(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(part.weight.shape, generator=generator)  # type: ignore[call-overload,arg-type]
        for name, part in prunable_weights(module).items()
    }


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize(("zeros", "group"), [(2, 4), (4, 8), (7, 8), (0, 4)])
def test_patterns_hold_along_the_input_axis(
    family: str, zeros: int, group: int, tiny_checkpoint: Checkpoints
) -> None:
    module = tiny_checkpoint(family).module()
    scores = _random_scores(module)
    chosen = choose_zeros(module, zeros / group, scores, group=group)
    for name, part in prunable_weights(module).items():
        gone, score = chosen[name], scores[name]
        if is_transposed(part):
            gone, score = gone.T, score.T
        gone, score = gone.reshape(-1, group), score.reshape(-1, group)
        assert (gone.sum(1) == zeros).all()
        if zeros:
            lost, kept = score.masked_fill(~gone, 0).amax(1), score.masked_fill(gone, 1).amin(1)
            assert (lost <= kept).all()


def test_patterns_hold_along_input_channels() -> None:
    module = torch.nn.Conv2d(8, 6, 3)
    chosen = choose_zeros(module, 0.5, {"weight": torch.rand(6, 8, 3, 3)}, group=4)["weight"]
    assert (chosen.view(6, 2, 4, 3, 3).sum(2) == 2).all()


def test_global_takes_where_it_matters_least(tiny_checkpoint: Checkpoints) -> None:
    module = tiny_checkpoint("bert").module()
    scores = _random_scores(module)
    dull = "bert.encoder.layer.0.output.dense.weight"
    scores[dull] *= 0.1
    chosen = choose_zeros(module, 0.3, scores, scope="global")
    total = sum(score.numel() for score in scores.values())
    assert sum(int(gone.sum()) for gone in chosen.values()) == round(0.3 * total)
    gone = torch.cat([scores[name][chosen[name]] for name in scores])
    kept = torch.cat([scores[name][~chosen[name]] for name in scores])
    assert gone.max() <= kept.min()
    assert chosen[dull].all()
    assert not choose_zeros(module, 0.3, scores)[dull].all()


def test_patterns_that_do_not_divide_are_refused_by_name(tiny_checkpoint: Checkpoints) -> None:
    tiny = tiny_checkpoint("mobilenetv2")
    with pytest.raises(ModelError, match=r"sparsity_pattern: needs input widths that 4 divides.*3"):
        prune(
            tiny.module(),
            tiny.task,
            tiny.examples(Train),
            Pruning(sparsity_pattern="2:4", criterion="magnitude"),
        )
    with pytest.raises(ModelError, match="7 divides"):
        sparsity_hook(
            tiny_checkpoint("bert").module(),
            tiny_checkpoint("bert").task,
            tiny_checkpoint("bert").examples(Train),
            Pruning(sparsity_pattern="1:7", sparsity_schedule="cubic"),
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity_pattern": "4:2"}, "N < M"),
        ({"sparsity_pattern": "half"}, "N:M"),
        ({"sparsity_pattern": "2:4", "sparsity": 0.7}, "0.7 is not what"),
        ({"sparsity_pattern": "2:4", "sparsity_scope": "global"}, "sparsity_scope"),
        ({"ffn": 0.0}, "removes nothing"),
    ],
)
def test_recipes_that_contradict_themselves(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Pruning(**options)


def test_a_schedule_needs_training_and_zeros() -> None:
    rising = {"ffn": 0.5, "sparsity_schedule": "cubic"}
    with pytest.raises(ValidationError, match="add fine_tune"):
        Candidate(name="a", pruning=Pruning(**rising, sparsity=0.5))
    with pytest.raises(ValidationError, match="needs a sparsity"):
        Candidate(name="a", pruning=Pruning(**rising), fine_tune=FineTune())


@pytest.mark.parametrize("changing", ["quantize_aware", "sparsity_schedule 'cubic'"])
def test_adapters_are_refused_beside_what_changes_the_weights(changing: str) -> None:
    rising = changing != "quantize_aware"
    with pytest.raises(ValidationError, match=f"and {changing} changes those"):
        Candidate(
            name="both",
            quantization="dynamic-int8",
            pruning=Pruning(sparsity=0.5, sparsity_schedule="cubic") if rising else None,
            fine_tune=FineTune(rank=4, quantize_aware=not rising),
        )
