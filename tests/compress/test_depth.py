"""Which layers go together: left out one after the other, by what is really missed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from exporter.compress.depth import rank_layers
from exporter.compress.divergence import divergence
from exporter.compress.prune import prune
from exporter.compress.removal import Removal, remove
from exporter.compress.structure import matrix_of, structure_of
from exporter.models.examples import Train
from exporter.recipe import Pruning
from tests.compress.conftest import Tiny

Checkpoints = Callable[[str], Tiny]


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


def test_a_layer_that_does_nothing_goes_first_and_the_rest_in_order(
    tiny_checkpoint: Checkpoints,
) -> None:
    tiny = tiny_checkpoint("llama")
    small: Any = tiny.module()
    config = small.config
    config.num_hidden_layers = 4
    torch.manual_seed(0)
    module = type(small)(config).eval()
    structure = structure_of(module)
    assert structure is not None
    dead = structure.blocks(module)[2]
    with torch.no_grad():
        for name in (structure.family.ffn_out, structure.family.attention_out):
            matrix_of(dead, name).zero_()
    examples = tiny.examples(Train)
    scores = rank_layers(module, structure, tiny.task, examples, 2, batch_size=16)
    first, second = np.argsort(scores, kind="stable")[:2]
    assert first == 2
    # Without the dead one, the next is the one that is least missed beside it.
    alone = rank_layers(module, structure, tiny.task, examples, 1, batch_size=16)
    assert second == np.argsort(alone, kind="stable")[1]


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
