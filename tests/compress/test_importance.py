"""Importance is a share, belongs to the data and not to its order, and finds dead units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from exporter.compress.importance import (
    Importance,
    prunable_weights,
    score_structure,
    score_weights,
)
from exporter.compress.structure import matrix_of, structure_of
from exporter.errors import DataError
from exporter.models.examples import Development, Examples, Test, Train
from exporter.models.tasks import Task
from tests.compress.conftest import TRANSFORMERS, Tiny

Checkpoints = Callable[[str], Tiny]
UNITS = ("magnitude", "wanda", "obs", "mask-gradient")


def _score(
    module: Any, examples: Examples[Any] | None, criterion: str, task: Task | None = None
) -> Importance:
    structure = structure_of(module)
    assert structure is not None
    return score_structure(
        module, structure, examples, criterion=criterion, task=task, batch_size=4
    )


def _shuffled(examples: Examples[Any]) -> Examples[Any]:
    order = np.random.default_rng(3).permutation(len(examples))
    return replace(
        examples,
        ids=tuple(examples.ids[i] for i in order),
        feeds=tuple(examples.feeds[i] for i in order),
        labels=None if examples.labels is None else examples.labels[order],
    )


@pytest.mark.parametrize("criterion", UNITS)
@pytest.mark.parametrize("family", TRANSFORMERS)
def test_scores_are_shares_of_each_unit(
    family: str, criterion: str, tiny_checkpoint: Checkpoints
) -> None:
    tiny = tiny_checkpoint(family)
    module = tiny.module()
    structure = structure_of(module)
    assert structure is not None
    found = _score(module, tiny.examples(Train), criterion, tiny.task)
    assert found.ffn.shape == (structure.layers, structure.ffn)
    assert found.groups.shape == (structure.layers, structure.groups)
    assert found.layers.shape == (structure.layers,)
    for scores in (found.ffn, found.groups, found.layers):
        assert np.isfinite(scores).all()
        assert scores.min(initial=0) >= 0
        assert scores.max(initial=0) <= 1
    assert (found.ffn.max(1) == 1).all()
    assert len(np.unique(found.ffn)) > structure.ffn // 2, "units must be told apart"


@pytest.mark.parametrize("family", ["bert", "qwen3", "vit"])
def test_order_of_examples_does_not_matter(family: str, tiny_checkpoint: Checkpoints) -> None:
    tiny = tiny_checkpoint(family)
    module, examples = tiny.module(), tiny.examples(Train)
    assert len(examples.feeds) == len(examples)
    one = _score(module, examples, "wanda")
    other = _score(module, _shuffled(examples), "wanda")
    assert np.array_equal(one.ffn, other.ffn)
    assert np.array_equal(one.groups, other.groups)
    assert np.array_equal(one.layers, other.layers)
    weights = score_weights(module, examples)
    again = score_weights(module, _shuffled(examples))
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_padding_does_not_count(tiny_checkpoint: Checkpoints) -> None:
    """One example at a time (no padding) scores as a padded batch does."""
    tiny = tiny_checkpoint("bert")
    module, examples = tiny.module(), tiny.examples(Train)
    structure = structure_of(module)
    assert structure is not None
    assert len({len(feed["input_ids"]) for feed in examples.feeds}) > 1
    alone = score_structure(module, structure, examples, batch_size=1)
    together = score_structure(module, structure, examples, batch_size=12)
    assert np.allclose(alone.ffn, together.ffn, atol=1e-5)
    assert np.allclose(alone.layers, together.layers, atol=1e-5)


@pytest.mark.parametrize("criterion", UNITS)
@pytest.mark.parametrize("family", TRANSFORMERS)
def test_dead_units_come_last(family: str, criterion: str, tiny_checkpoint: Checkpoints) -> None:
    tiny = tiny_checkpoint(family)
    module = tiny.module()
    structure = structure_of(module)
    assert structure is not None
    places = structure.family
    last = structure.layers - 1
    with torch.no_grad():
        block = structure.blocks(module)[last]
        matrix_of(block, places.ffn_out)[:, 7] = 0
        for projection in places.ffn_in:
            for row in structure.rows(projection, units=[7], groups=[]):
                matrix_of(block, projection.name)[row] = 0
        if structure.groups:
            width = structure.width("query")
            matrix_of(block, places.attention_out)[:, :width] = 0
            for projection in places.attention_in:
                rows = structure.rows(projection, units=[], groups=[0])
                matrix_of(block, projection.name)[rows] = 0
    found = _score(module, tiny.examples(Train), criterion, tiny.task)
    assert found.ffn[last].argmin() == 7
    assert found.ffn[last][7] == 0
    if structure.groups:
        assert found.groups[last].argmin() == 0
        assert found.groups[last][0] == 0


def test_wanda_sees_what_weights_do_not_show(tiny_checkpoint: Checkpoints) -> None:
    """A unit with the largest weights that never fires is dead to wanda alone."""
    tiny = tiny_checkpoint("bert")
    module = tiny.module()
    block = module.bert.encoder.layer[0]
    with torch.no_grad():
        block.output.dense.weight[:, 5] = 10.0
        block.intermediate.dense.bias[5] = -1e4
    assert _score(module, tiny.examples(Train), "magnitude").ffn[0].argmax() == 5
    assert _score(module, tiny.examples(Train), "wanda").ffn[0].argmin() == 5


def test_layer_that_does_nothing_comes_last(tiny_checkpoint: Checkpoints) -> None:
    tiny = tiny_checkpoint("llama")
    module = tiny.module()
    with torch.no_grad():
        module.model.layers[1].self_attn.o_proj.weight.zero_()
        module.model.layers[1].mlp.down_proj.weight.zero_()
    found = _score(module, tiny.examples(Train), "wanda")
    assert found.layers[1] == pytest.approx(0, abs=1e-9)
    assert found.layers[0] == 1


def test_weights_are_scored_in_rows_by_what_they_meet(tiny_checkpoint: Checkpoints) -> None:
    tiny = tiny_checkpoint("bert")
    module = tiny.module()
    scores = score_weights(module, tiny.examples(Train), "wanda")
    parameters = dict(module.named_parameters())
    assert set(scores) == set(prunable_weights(module))
    for name, values in scores.items():
        assert values.shape == parameters[name].shape
        assert float(values.min()) >= 0
        assert float(values.max()) <= 1
    # An input that is always zero makes its weights the least important of every row.
    with torch.no_grad():
        module.bert.encoder.layer[0].intermediate.dense.bias[5] = -1e4
    again = score_weights(module, tiny.examples(Train), "wanda")
    assert (again["bert.encoder.layer.0.output.dense.weight"][:, 5] == 0).all()


@pytest.mark.parametrize("family", ["mobilenetv2", "gpt2"])
def test_convolutions_and_transposed_weights_are_scored(
    family: str, tiny_checkpoint: Checkpoints
) -> None:
    tiny = tiny_checkpoint(family)
    module = tiny.module()
    scores = score_weights(module, tiny.examples(Train, 4), "wanda")
    parameters = dict(module.named_parameters())
    assert len(scores) > 4
    for name, values in scores.items():
        assert values.shape == parameters[name].shape
        assert torch.isfinite(values).all()
    if family == "gpt2":  # (in, out): ranks run along the inputs of each output
        column = scores["transformer.h.0.mlp.c_fc.weight"][:, 0]
        assert torch.allclose(column.sort().values, torch.arange(1, len(column) + 1) / len(column))


def test_embeddings_and_what_is_tied_to_them_stay(tiny_checkpoint: Checkpoints) -> None:
    names = set(prunable_weights(tiny_checkpoint("qwen3").module()))
    assert not any("embed" in name or "lm_head" in name for name in names)
    assert "model.layers.0.mlp.up_proj.weight" in names


def test_other_splits_are_refused(tiny_checkpoint: Checkpoints) -> None:
    tiny = tiny_checkpoint("bert")
    module = tiny.module()
    for role in (Test, Development):
        with pytest.raises(DataError, match=f"the {role.name} split"):
            _score(module, tiny.examples(role), "wanda")
    with pytest.raises(DataError, match="needs training examples"):
        _score(module, None, "wanda")
