"""What a part costs on its own is what removing it alone costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from exporter.compress.activations import tensors
from exporter.compress.channels import coupled_channels, mask_channels
from exporter.compress.costs import costs, going, going_channels
from exporter.compress.divergence import BATCHES, divergence, divergences
from exporter.compress.prune import prune
from exporter.compress.removal import Removal, remove
from exporter.compress.structure import Structure, structure_of
from exporter.models.examples import Train
from exporter.models.runner import forward_names
from exporter.recipe import Pruning
from exporter.rounds import joined
from tests.compress.conftest import Tiny

Checkpoints = Callable[[str], Tiny]
BATCH = 8


def _whole(structure: Structure) -> Removal:
    """A removal of nothing."""
    every = tuple(range(structure.layers))
    units, groups = tuple(range(structure.ffn)), tuple(range(structure.groups))
    return Removal(every, (units,) * len(every), (groups,) * len(every))


@pytest.mark.parametrize("family", ["bert", "qwen3", "gpt2", "gemma3", "vit", "modernbert"])
def test_a_layer_costs_what_its_removal_costs(family: str, tiny_checkpoint: Checkpoints) -> None:
    tiny = tiny_checkpoint(family)
    module, examples = tiny.module(), tiny.examples(Train)
    structure = structure_of(module)
    assert structure is not None
    last = structure.layers - 1
    whole = _whole(structure)
    removal = Removal(whole.layers[:-1], whole.ffn[:-1], whole.groups[:-1])
    parts = going(module, structure, removal)
    (cost,) = costs(module, structure, tiny.task, examples, parts, BATCH)
    really = divergence(module, remove(module, removal), tiny.task, examples, BATCH)
    assert (cost["part"], cost["layer"]) == ("layers", last)
    assert cost["divergence"] == pytest.approx(really, rel=1e-3, abs=1e-7)
    assert really > 0


@pytest.mark.parametrize("family", ["bert", "qwen3", "gemma3", "vit"])
def test_the_hidden_width_costs_what_its_removal_costs(
    family: str, tiny_checkpoint: Checkpoints
) -> None:
    """And the module comes back bit by bit; where heads follow the width, they go beside it."""
    tiny = tiny_checkpoint(family)
    module, examples = tiny.module(), tiny.examples(Train)
    structure = structure_of(module)
    assert structure is not None
    before = {name: value.clone() for name, value in module.state_dict().items()}
    parts_before = [name for name, _ in module.named_modules()]
    if structure.family.heads_follow_width:
        groups = structure.groups - 1
        width = groups * structure.head_dim
    else:
        groups, width = structure.groups, structure.hidden - 8
    kept = tuple(range(width))
    whole = _whole(structure)
    removal = Removal(
        whole.layers, whole.ffn, (tuple(range(groups)),) * structure.layers, hidden=kept
    )
    parts = [one for one in going(module, structure, removal) if one.part == "hidden"]
    (cost,) = costs(module, structure, tiny.task, examples, parts, BATCH)
    assert (cost["before"], cost["after"]) == (structure.hidden, width)
    assert cost["divergence"] > 0
    if groups == structure.groups:
        really = divergence(module, remove(module, removal), tiny.task, examples, BATCH)
        assert cost["divergence"] == pytest.approx(really, rel=1e-3, abs=1e-7)
    assert [name for name, _ in module.named_modules()] == parts_before
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("family", "part"), [("bert", "ffn"), ("qwen3", "ffn"), ("qwen3", "heads")]
)
def test_units_of_one_layer_cost_what_zeros_in_their_place_cost(
    family: str, part: str, tiny_checkpoint: Checkpoints
) -> None:
    """A config cannot say a layer narrower than others, so the cut is made to all, one by one."""
    tiny = tiny_checkpoint(family)
    module, examples = tiny.module(), tiny.examples(Train)
    structure = structure_of(module)
    assert structure is not None
    whole = _whole(structure)
    half = tuple(range((structure.ffn if part == "ffn" else structure.groups) // 2))
    kept = {"ffn": whole.ffn, "groups": whole.groups}
    name = "ffn" if part == "ffn" else "groups"
    kept[name] = (half,) * structure.layers
    removal = Removal(whole.layers, kept["ffn"], kept["groups"])
    parts = going(module, structure, removal)
    told = costs(module, structure, tiny.task, examples, parts, BATCH)
    assert [(cost["part"], cost["layer"]) for cost in told] == [
        (part, layer) for layer in range(structure.layers)
    ]
    family_ = structure.family
    reader = family_.ffn_out if part == "ffn" else family_.attention_out
    for cost in told:
        other = tiny.module()
        block = structure.blocks(other)[cost["layer"]]
        weight = block.get_submodule(reader).weight
        assert isinstance(weight, torch.Tensor)
        gone = sorted(set(range(structure.ffn if part == "ffn" else structure.groups)) - set(half))
        columns = gone if part == "ffn" else structure.features(gone)
        with torch.no_grad():
            weight[:, columns] = 0
        really = divergence(module, other, tiny.task, examples, BATCH)
        assert cost["divergence"] == pytest.approx(really, rel=1e-3, abs=1e-7)


def test_coupled_channels_cost_what_their_removal_costs(tiny_checkpoint: Checkpoints) -> None:
    """`mask_channels` is what removal computes (test_channels.py); here for one set at a time."""
    tiny = tiny_checkpoint("mobilenetv2")
    module, examples = tiny.module(), tiny.examples(Train, BATCH)
    feeds = tensors(next(iter(examples.batches(1))), forward_names(module))
    groups = coupled_channels(module, feeds)
    every = [tuple(range(group.count)) for group in groups]
    half = [stays[: max(1, len(stays) // 2)] for stays in every]
    parts = list(going_channels(groups, half))
    told = costs(module, None, tiny.task, examples, parts, BATCH)
    assert len({cost["name"] for cost in told}) == len(told) == len(groups)
    for i, cost in enumerate(told):
        alone = [half[k] if k == i else every[k] for k in range(len(groups))]
        masked = mask_channels(module, groups, alone)
        really = divergence(module, masked, tiny.task, examples, BATCH)
        assert cost["divergence"] == pytest.approx(really, rel=1e-3, abs=1e-7)
    assert max(cost["divergence"] for cost in told) > 0
    removed = prune(module, tiny.task, examples, Pruning(channels=0.5)).removed
    assert sum(cost["before"] - cost["after"] for cost in removed["costs"]) == (
        removed["channels"]["before"] - removed["channels"]["after"]
    )


def test_a_pruned_module_tells_what_each_part_cost(tiny_checkpoint: Checkpoints) -> None:
    tiny = tiny_checkpoint("qwen3")
    removed = prune(
        tiny.module(),
        tiny.task,
        tiny.examples(Train),
        Pruning(ffn=0.5, heads=0.5, layers=0.3, sparsity=0.3),
    ).removed
    gone = set(range(removed["layers"]["before"])) - set(removed["layers"]["kept"])
    told = [(cost["part"], cost.get("layer")) for cost in removed["costs"]]
    kept = removed["layers"]["kept"]
    assert told == [
        *(("layers", layer) for layer in sorted(gone)),
        *(("ffn", layer) for layer in kept),
        *(("heads", layer) for layer in kept),
        ("sparsity", None),
    ]
    assert all(np.isfinite(cost["divergence"]) for cost in removed["costs"])
    json.dumps(removed, allow_nan=False)


def test_rounds_keep_their_costs_apart() -> None:
    """And speak of the original's layers: after round one, layer 1 is what was layer 2."""
    first = {
        "layers": {"before": 4, "after": 3, "kept": [0, 2, 3], "importance": [1.0] * 4},
        "costs": [{"part": "layers", "layer": 1, "divergence": 0.5}],
        "divergence": 0.5,
    }
    second = {
        "layers": {"before": 3, "after": 2, "kept": [0, 2], "importance": [1.0] * 3},
        "costs": [
            {"part": "layers", "layer": 1, "divergence": 0.25},
            {"part": "sparsity", "divergence": 0.125},
        ],
        "divergence": 0.3,
    }
    total = joined([first, second])
    assert total["costs"] == [
        {"part": "layers", "layer": 1, "divergence": 0.5, "round": 1},
        {"part": "layers", "layer": 2, "divergence": 0.25, "round": 2},
        {"part": "sparsity", "divergence": 0.125, "round": 2},
    ]
    assert total["by_round"] == [{"divergence": 0.5}, {"divergence": 0.3}]


def test_many_parts_are_measured_on_fewer_examples(tiny_checkpoint: Checkpoints) -> None:
    """Whatever the number of parts, what they add to pruning is bounded."""
    tiny = tiny_checkpoint("bert")
    module, examples = tiny.module(), tiny.examples(Train, 5 * BATCH)
    runs = 0

    def count(*_: object) -> None:
        nonlocal runs
        runs += 1

    handle = module.register_forward_pre_hook(count)
    for masks, expected in ((1, 2 * BATCHES), (11, 12 * 2), (200, 201)):
        runs = 0
        told = divergences(module, tiny.task, examples, BATCH, [nullcontext] * masks)
        assert told == pytest.approx([0.0] * masks, abs=1e-6)
        assert runs == expected
    handle.remove()
