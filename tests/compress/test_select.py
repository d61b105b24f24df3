"""Selection: nothing goes at a threshold of 0 but the dead, and kept sets are nested."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.compress.importance import score_structure, score_weights
from exporter.compress.removal import Removal, mask
from exporter.compress.select import above, best, cost_of, share, uniform, within
from exporter.compress.structure import structure_of
from exporter.compress.units import structure_units
from exporter.models.examples import Train
from tests.compress.conftest import Tiny

SCORES = st.lists(st.floats(0, 1), min_size=6, max_size=24).map(np.asarray)
QUICK = settings(max_examples=50, deadline=None, derandomize=True)


@QUICK
@given(SCORES, st.floats(0, 1), st.floats(0, 1))
def test_kept_sets_are_nested(scores: np.ndarray, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert set(above(scores, high)) <= set(above(scores, low))
    assert set(share(scores, high)) <= set(share(scores, low))
    costs = 1 + np.arange(len(scores), dtype=np.float64)
    budgets = (low * costs.sum(), high * costs.sum())
    assert set(within(scores, costs, budgets[0])) <= set(within(scores, costs, budgets[1]))
    assert costs[list(within(scores, costs, budgets[1]))].sum() <= budgets[1] * (1 + 1e-9)
    table = scores[: len(scores) // 3 * 3].reshape(3, -1)
    few, many = (uniform(table, above(table.ravel(), t)) for t in (high, low))
    assert all(set(a) <= set(b) for a, b in zip(few, many, strict=True))
    assert len({len(kept) for kept in few}) == 1


@QUICK
@given(SCORES, st.floats(0, 1))
def test_uniform_keeps_all_that_was_kept(scores: np.ndarray, threshold: float) -> None:
    table = scores[: len(scores) // 3 * 3].reshape(3, -1)
    kept = above(table.ravel(), threshold)
    stays = uniform(table, kept)
    flat = {layer * table.shape[1] + i for layer, row in enumerate(stays) for i in row}
    assert set(kept) <= flat
    assert all(row for row in stays), "a layer keeps at least one"


def test_a_threshold_of_zero_changes_nothing(tiny_checkpoint: Callable[[str], Tiny]) -> None:
    tiny = tiny_checkpoint("bert")
    module, examples = tiny.module(), tiny.examples(Train, 6)
    with torch.no_grad():  # a dead unit is all that goes
        module.bert.encoder.layer[0].output.dense.weight[:, 7] = 0
    structure = structure_of(module)
    assert structure is not None
    feeds = {k: torch.from_numpy(v)[None] for k, v in examples.feeds[0].items()}
    expected = module(**feeds).logits
    importance = score_structure(module, structure, examples, criterion="wanda")
    kept = above(importance.ffn.ravel(), 0.0)
    assert set(range(importance.ffn.size)) - set(kept) == {7}
    rows = [tuple(i for i in range(64) if 64 * layer + i in set(kept)) for layer in range(2)]
    heads = (tuple(range(structure.groups)),) * 2
    without = mask(module, Removal((0, 1), tuple(rows), heads))
    assert torch.equal(without(**feeds).logits, expected)
    assert len(uniform(importance.ffn, kept)[0]) == 64
    for criterion in ("magnitude", "wanda", "taylor", "fisher"):
        scores = score_weights(module, examples, criterion, task=tiny.task)
        sparse = tiny.module()
        sparse.load_state_dict(module.state_dict())
        with torch.no_grad():
            for name, values in scores.items():
                dict(sparse.named_parameters())[name][values <= 0] = 0
        close = torch.allclose(sparse(**feeds).logits, expected, atol=1e-6)
        assert close, criterion


def test_costs_are_those_of_a_unit(tiny_checkpoint: Callable[[str], Tiny]) -> None:
    module = tiny_checkpoint("bert").module()
    structure = structure_of(module)
    assert structure is not None
    units = structure_units(module, structure, "ffn")
    assert (cost_of(module, units, "parameters") == 32 + 1 + 32).all()
    assert (cost_of(module, units, "flops") == 2 * (32 + 32)).all()
    layers = structure_units(module, structure, "layer")
    whole = sum(p.numel() for p in module.bert.encoder.layer[0].parameters())
    assert cost_of(module, layers, "parameters")[0] == whole
    assert best(np.asarray([0.5, 1.0, 0.5]), 2) == (0, 1)


def test_no_more_goes_than_is_asked_for_and_no_less() -> None:
    scores = np.asarray([0.5, 0.1, 0.9, 0.3])
    assert above(scores, 0.3) == (0, 2)
    assert share(scores, 0.5) == (0, 2)
    assert share(scores, 0.74) == (0, 2), "at most the share"
    assert share(scores, 0.0) == (0, 1, 2, 3)
    costs = np.asarray([2.0, 1.0, 3.0, 2.0])
    assert within(scores, costs, 5.0) == (0, 2)
    assert within(scores, costs, 6.0) == (0, 2), "the first that does not fit ends it"
    assert within(scores, costs, 7.0) == (0, 2, 3)
    assert within(scores, costs, 2.9) == ()
