"""Which layers go together: left out one after the other, by what is really missed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from exporter.compress.depth import rank_layers
from exporter.compress.divergence import divergence
from exporter.compress.plan import plan_removal
from exporter.compress.prune import prune
from exporter.compress.removal import Removal, remove
from exporter.compress.structure import matrix_of, structure_of
from exporter.models.examples import Train
from exporter.recipe import Pruning
from tests.compress.conftest import Checkpoints


@pytest.mark.parametrize("family", ["bert", "llama", "vit"])
def test_the_first_to_go_is_missed_least(family: str, tiny_checkpoint: Checkpoints) -> None:
    tiny = tiny_checkpoint(family)
    module, examples = tiny.module(), tiny.examples(Train)
    structure = structure_of(module)
    assert structure is not None
    before = {name: value.clone() for name, value in module.state_dict().items()}
    scores = rank_layers(module, structure, tiny.task, examples, 1, batch_size=64)
    every = range(structure.layers)
    units = tuple(tuple(range(structure.ffn)) for _ in every)[1:]
    groups = tuple(tuple(range(structure.groups)) for _ in every)[1:]
    moved = [
        divergence(
            module,
            remove(module, Removal(tuple(j for j in every if j != i), units, groups)),
            tiny.task,
            examples,
            64,
        )
        for i in every
    ]
    assert int(np.argmin(scores)) == int(np.argmin(moved))
    assert scores.max() == 1
    after = module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_of_two_layers_that_stand_in_for_one_another_one_stays(
    tiny_checkpoint: Checkpoints,
) -> None:
    """A layer that does nothing goes first; block influence and a planted harm change nothing."""
    tiny = tiny_checkpoint("bert", layers=4)
    module = tiny.module()
    structure = structure_of(module)
    assert structure is not None
    dead = structure.blocks(module)[2]
    with torch.no_grad():
        for name in (structure.family.ffn_out, structure.family.attention_out):
            matrix_of(dead, name).zero_()
            bias = dead.get_submodule(name).bias
            assert isinstance(bias, torch.Tensor)
            bias.zero_()
    scores = rank_layers(module, structure, tiny.task, tiny.examples(Train), 2, batch_size=16)
    assert int(np.argmin(scores)) == 2
    order = np.argsort(scores, kind="stable")
    assert (np.diff(scores[order]) >= 0).all()


def test_pruning_takes_the_layers_that_are_missed_least(tiny_checkpoint: Checkpoints) -> None:
    tiny = tiny_checkpoint("bert")
    module, examples = tiny.module(), tiny.examples(Train)
    structure = structure_of(module)
    assert structure is not None
    gone = structure.layers // 2
    scores = rank_layers(module, structure, tiny.task, examples, gone, batch_size=8)
    pruned = prune(module, tiny.task, examples, Pruning(layers=0.5))
    kept = sorted(np.argsort(-scores, kind="stable")[: structure.layers - gone].tolist())
    assert pruned.removed["layers"]["kept"] == kept
    assert plan_removal is not None
