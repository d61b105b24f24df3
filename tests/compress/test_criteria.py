"""Criteria: what must hold of every one, and what tells one from another."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from exporter.compress.criteria import get_criterion
from exporter.compress.hidden import hidden_axes
from exporter.compress.importance import score_units, score_weights
from exporter.compress.structure import matrix_of, structure_of
from exporter.compress.units import (
    Kind,
    Slice,
    Unit,
    block_units,
    canonical_names,
    channel_units,
    structure_units,
    total,
    units_along,
    weight_units,
)
from exporter.errors import DataError, ModelError, ProfileError
from exporter.models.examples import Examples, Train
from exporter.recipe import CRITERIA, Pruning
from tests.compress.conftest import Tiny

Checkpoints = Callable[[str], Tiny]
DAMPING = 0.01
WEIGHTS = tuple(name for name, kinds in CRITERIA.items() if "weight" in kinds)


def _units(module: Any, kind: Kind) -> list[Unit]:
    structure = structure_of(module)
    assert structure is not None
    return structure_units(module, structure, kind)


def _score(
    tiny: Tiny, module: Any, criterion: str, units: list[Unit], examples: Examples[Any]
) -> Any:
    return score_units(
        module, [(criterion, units)], examples, task=tiny.task, damping=DAMPING, batch_size=4
    )[0]


def _shuffled(examples: Examples[Any]) -> Examples[Any]:
    order = np.random.default_rng(3).permutation(len(examples))
    return replace(
        examples,
        ids=tuple(examples.ids[i] for i in order),
        feeds=tuple(examples.feeds[i] for i in order),
        labels=None if examples.labels is None else examples.labels[order],
    )


def _cases(*kinds: Kind) -> list[Any]:
    return [(kind, c) for kind in kinds for c, scored in CRITERIA.items() if kind in scored]


@pytest.mark.parametrize("family", ["bert", "qwen3", "gpt2"])
@pytest.mark.parametrize(("kind", "criterion"), _cases("head", "ffn", "layer"))
def test_a_dead_unit_comes_last(
    family: str, kind: Kind, criterion: str, tiny_checkpoint: Checkpoints
) -> None:
    """Whatever is measured, what has no weights has no effect, and it alone."""
    tiny = tiny_checkpoint(family)
    module = tiny.module()
    units = _units(module, kind)[: 2 if kind == "layer" else 8]
    dead = units[1]
    parameters = dict(module.named_parameters())
    if kind == "layer":
        # Of a layer that passes its input on only the weights tell that they are there.
        if criterion in ("magnitude", "magnitude-l1", "taylor", "fisher", "obs"):
            silenced = [s for s in dead.slices if parameters[s.parameter].dim() > 1]
            dead = replace(dead, slices=tuple(silenced))
            units[1] = dead
        elif family == "bert":
            pytest.skip("a BERT layer normalizes its input in any case")
        else:
            silenced = [s for s in dead.slices if "proj" in s.parameter]
    else:
        silenced = list(dead.slices)
    with torch.no_grad():
        for one in silenced:
            parameters[one.parameter].index_fill_(one.axis, torch.tensor(one.index), 0.0)
    found = _score(tiny, module, criterion, units, tiny.examples(Train, 4))
    assert found.argmin() == 1
    assert found[1] == pytest.approx(0, abs=1e-9)
    assert (np.delete(found, 1) > found[1]).all()


@pytest.mark.parametrize(("kind", "criterion"), _cases("head", "layer"))
def test_scores_belong_to_the_data_not_to_its_order_or_splitting(
    kind: Kind, criterion: str, tiny_checkpoint: Checkpoints
) -> None:
    tiny = tiny_checkpoint("bert")
    module, examples = tiny.module(), tiny.examples(Train, 8)
    units = _units(module, kind)
    parts = [(criterion, units)]
    given = {"task": tiny.task, "damping": DAMPING}
    one = score_units(module, parts, examples, batch_size=4, **given)[0]
    other = score_units(module, parts, _shuffled(examples), batch_size=4, **given)[0]
    split = score_units(module, parts, examples, batch_size=3, **given)[0]
    assert np.array_equal(one, other)
    assert np.allclose(one, split, rtol=1e-4)


@pytest.mark.parametrize("criterion", WEIGHTS)
def test_every_weight_gets_a_share(criterion: str, tiny_checkpoint: Checkpoints) -> None:
    for family in ("bert", "gpt2", "mobilenetv2"):
        tiny = tiny_checkpoint(family)
        module = tiny.module()
        found = score_weights(
            module, tiny.examples(Train, 4), criterion, task=tiny.task, damping=DAMPING
        )
        parameters = dict(module.named_parameters())
        for name, values in found.items():
            assert values.shape == parameters[name].shape
            assert torch.isfinite(values).all()
            assert values.min() >= 0
            assert values.max() <= 1


class _Plain(nn.Module):
    """One layer over a named input."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.layer.weight.data = weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x)
        return out


def _rows(inputs: torch.Tensor) -> Examples[Train]:
    """Each row of (positions, features) as an example."""
    feeds = tuple({"x": row.numpy()} for row in inputs)
    ids = tuple(str(i) for i in range(len(feeds)))
    return Examples(Train, ids, feeds, tuple(range(len(feeds))), None, {})


def test_wanda_with_equal_input_norms_orders_as_magnitude() -> None:
    torch.manual_seed(0)
    module = _Plain(torch.randn(6, 8))
    signs = torch.randn(32, 8).sign()  # every input has the norm √32
    wanda = score_weights(module, _rows(signs), "wanda")["layer.weight"]
    sizes = score_weights(module, None, "magnitude")["layer.weight"]
    assert torch.equal(wanda.argsort(dim=1), sizes.argsort(dim=1))
    signs[:, 3] *= 100
    moved = score_weights(module, _rows(signs), "wanda")["layer.weight"]
    assert (moved[:, 3] == 1).all()


def test_a_duplicated_unit_is_redundant_to_obs_and_not_to_magnitude(
    tiny_checkpoint: Checkpoints,
) -> None:
    tiny = tiny_checkpoint("bert")
    module, examples = tiny.module(), tiny.examples(Train, 12)
    block = module.bert.encoder.layer[0]
    with torch.no_grad():
        for name in ("weight", "bias"):
            value = getattr(block.intermediate.dense, name)
            value.normal_()
            value[9] = value[4]
        block.output.dense.weight[:, [4, 9]] = 3.0  # the largest there are
    units = _units(module, "ffn")[:64]
    sizes = _score(tiny, module, "magnitude", units, examples)
    assert {int(i) for i in sizes.argsort()[-2:]} == {4, 9}
    found = score_units(module, [("obs", units)], examples, damping=1e-6)[0]
    alone = found[[i for i in range(64) if i not in (4, 9)]]
    # Each could be made up for by the other: with these weights nothing else would be so cheap.
    energy = score_units(module, [("wanda", units)], examples)[0]
    assert {int(i) for i in energy.argsort()[-2:]} == {4, 9}
    assert found[4] < alone.max()
    relative = found / energy**2
    assert {int(i) for i in relative.argsort()[:2]} == {4, 9}


def test_obs_of_a_group_is_the_loss_that_least_squares_leaves() -> None:
    """½·w_G([H⁻¹]_GG)⁻¹w_G is what remains when all other weights make up as well as they can."""
    torch.manual_seed(1)
    module = _Plain(torch.randn(3, 5))
    inputs = torch.randn(40, 5) @ torch.randn(5, 5)
    group = [1, 3]
    unit = Unit("ffn", "two", None, (Slice("layer.weight", 1, tuple(group)),))
    found = score_units(module, [("obs", [unit])], _rows(inputs), damping=0.0)[0]
    target = inputs @ module.layer.weight.detach().T
    rest = inputs[:, [0, 2, 4]]
    refit = torch.linalg.lstsq(rest.double(), target.double()).solution
    left = (rest.double() @ refit - target.double()).square().sum() / len(inputs) / 2
    assert found[0] == pytest.approx(float(left), rel=1e-4)


def test_a_tied_weight_counts_once(tiny_checkpoint: Checkpoints) -> None:
    module = tiny_checkpoint("qwen3").module()
    names = canonical_names(module)
    assert names["lm_head.weight"] == names["model.embed_tokens.weight"]
    axes = {"model.embed_tokens.weight": (1,), "lm_head.weight": (1,)}
    unit = units_along(module, "hidden", axes, 32)[5]
    found = score_units(module, [("magnitude", [unit])], None)[0]
    column = module.lm_head.weight[:, 5].detach().double()
    assert found[0] == pytest.approx(float(column.norm()))


@pytest.mark.parametrize(
    "criterion", [name for name, kinds in CRITERIA.items() if "hidden" in kinds]
)
def test_a_dead_channel_of_the_residual_stream_comes_last(
    criterion: str, tiny_checkpoint: Checkpoints
) -> None:
    for family in ("bert", "qwen3"):
        tiny = tiny_checkpoint(family)
        module = tiny.module()
        structure = structure_of(module)
        assert structure is not None
        units = units_along(module, "hidden", hidden_axes(module, structure), structure.hidden)
        parameters = dict(module.named_parameters())
        with torch.no_grad():
            for one in units[5].slices:
                parameters[one.parameter].index_fill_(one.axis, torch.tensor(one.index), 0.0)
        found = _score(tiny, module, criterion, units, tiny.examples(Train, 4))
        assert found.argmin() == 5
        assert found[5] == pytest.approx(0, abs=1e-9)


def test_where_slices_cross_a_weight_counts_once() -> None:
    values = {"w": torch.ones(4, 4)}
    assert total(values, [Slice("w", 0, (1,)), Slice("w", 1, (1,))]) == 7
    assert total(values, [Slice("w", 0, (1,)), Slice("w", 0, (1,))]) == 4
    assert total(values, [Slice("w", None, (3, 5)), Slice("w", 0, (1,))]) == 5


def test_ablation_is_the_loss_without_and_leaves_no_trace(tiny_checkpoint: Checkpoints) -> None:
    tiny = tiny_checkpoint("bert")
    module, examples = tiny.module(), tiny.examples(Train, 6)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    unit = _units(module, "head")[2]
    without = _units(module, "head")[2:3]
    # The same unit switched off by its weights instead of its activations.
    by_weights = [replace(unit, point=None)]
    found = _score(tiny, module, "ablation", without, examples)
    again = _score(tiny, module, "ablation", by_weights, examples)
    assert found[0] > 0
    assert found[0] == pytest.approx(again[0], rel=1e-3)
    assert all(torch.equal(before[n], v) for n, v in module.state_dict().items())
    assert not any(part._forward_hooks for part in module.modules())
    with torch.no_grad():
        matrix_of(module.bert.encoder.layer[0], "attention.output.dense")[:, 16:24] = 0
    assert _score(tiny, module, "ablation", without, examples)[0] == 0


def test_ablation_without_labels_asks_how_far_the_answers_move(
    tiny_checkpoint: Checkpoints,
) -> None:
    tiny = tiny_checkpoint("bert-encoder")
    module, examples = tiny.module(), tiny.examples(Train, 4)
    units = _units(module, "layer")
    assert (_score(tiny, module, "ablation", units, examples) > 0).all()
    with pytest.raises(DataError, match="no labels"):
        _score(tiny, module, "taylor", units, examples)


def test_taylor_and_mask_gradient_foretell_a_small_change(tiny_checkpoint: Checkpoints) -> None:
    """A gate moved a little changes the loss by its slope."""
    tiny = tiny_checkpoint("bert")
    module = tiny.module()
    examples = tiny.examples(Train, 1)
    unit = _units(module, "ffn")[3]
    slope = _score(tiny, module, "mask-gradient", [unit], examples)[0]
    column = matrix_of(module.bert.encoder.layer[0], "output.dense")
    losses = []
    feeds = {k: torch.from_numpy(v)[None] for k, v in examples.feeds[0].items()}
    labels = torch.from_numpy(examples.labels)
    module.double()
    with torch.no_grad():
        for gate in (1.001, 1 / 1.001**2):
            matrix_of(module.bert.encoder.layer[0], "output.dense")[:, 3] *= gate
            losses.append(float(nn.functional.cross_entropy(module(**feeds).logits, labels)))
    assert column.shape[1] > 3
    assert slope == pytest.approx(abs(losses[0] - losses[1]) / 0.002, rel=0.02)


def test_units_of_other_granularities(tiny_checkpoint: Checkpoints) -> None:
    tiny = tiny_checkpoint("mobilenetv2")
    module, examples = tiny.module(), tiny.examples(Train, 4)
    columns = block_units(module, "column")[:3]
    for criterion in ("magnitude", "wanda", "obs", "fisher", "ablation"):
        for units in (block_units(module, "row")[:3], columns, channel_units(module)[:3]):
            assert np.isfinite(_score(tiny, module, criterion, units, examples)).all()
    single = weight_units(module, 5)
    assert len({unit.name for unit in single}) == 5
    sizes = _score(tiny, module, "magnitude", single, examples)
    name, where = single[2].name.rstrip("]").split("[")
    at = tuple(int(i) for i in where.split(","))
    assert sizes[2] == pytest.approx(abs(float(dict(module.named_parameters())[name][at])))


def test_heads_that_share_keys_take_them_along_only_as_a_group(
    tiny_checkpoint: Checkpoints,
) -> None:
    module = tiny_checkpoint("llama").module()
    heads, groups = _units(module, "head"), _units(module, "group")
    assert (len(heads), len(groups)) == (8, 4)
    assert {s.parameter.split(".")[-2] for s in heads[0].slices} == {"q_proj", "o_proj"}
    shared = {s.parameter.split(".")[-2] for s in groups[0].slices}
    assert shared == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_broken_weights_are_named(tiny_checkpoint: Checkpoints) -> None:
    tiny = tiny_checkpoint("bert")
    module = tiny.module()
    with torch.no_grad():
        module.bert.encoder.layer[1].output.dense.weight[3, 4] = math.inf
    units = _units(module, "ffn")[:2]
    for criterion in ("magnitude", "wanda", "taylor", "ablation"):
        with pytest.raises(ModelError, match=r"layer\.1\.output\.dense\.weight: must hold finite"):
            _score(tiny, module, criterion, units, tiny.examples(Train, 4))


def test_broken_activations_name_the_layer(tiny_checkpoint: Checkpoints) -> None:
    tiny = tiny_checkpoint("bert")
    module = tiny.module()
    with torch.no_grad():
        module.bert.encoder.layer[1].intermediate.dense.bias.fill_(1e30)
        module.bert.encoder.layer[1].output.dense.weight.fill_(1e20)
    units = _units(module, "ffn")[:2]
    for criterion in ("wanda", "fisher", "ablation"):
        with pytest.raises(ModelError, match=r"layer\.1\.output\.dense: must give out finite"):
            _score(tiny, module, criterion, units, tiny.examples(Train, 4))


def test_too_little_data_for_a_hessian_says_so(tiny_checkpoint: Checkpoints) -> None:
    tiny = tiny_checkpoint("bert")
    module, examples = tiny.module(), tiny.examples(Train, 1)
    units = _units(module, "ffn")[:2]
    with pytest.raises(DataError, match="as many positions as input features, 64, got"):
        score_units(module, [("obs", units)], examples)
    assert np.isfinite(score_units(module, [("obs", units)], examples, damping=0.1)[0]).all()


def test_a_layer_that_no_data_reaches_is_named() -> None:
    module = _Plain(torch.randn(2, 3))
    module.unused = nn.Linear(3, 2)
    for criterion in ("wanda", "obs"):
        with pytest.raises(DataError, match="unused: must be reached"):
            score_weights(module, _rows(torch.randn(8, 3)), criterion)


def test_unknown_and_unfit_criteria_are_refused() -> None:
    with pytest.raises(ProfileError, match="did you mean 'fisher'"):
        get_criterion("fischer")
    with pytest.raises(ProfileError, match="must score single weights"):
        score_weights(_Plain(torch.randn(2, 3)), None, "ablation")
    with pytest.raises(ValueError, match="cannot score what ffn removes"):
        Pruning(ffn=0.5, criterion="block-influence")
    assert Pruning(layers=0.5, criterion="wanda").criterion == "wanda"
    for name in CRITERIA:
        assert get_criterion(name)


def test_a_stopped_run_goes_on(tiny_checkpoint: Checkpoints, tmp_path: Any) -> None:
    """What a killed run wrote down, a torn last line left out, is not run again."""
    tiny = tiny_checkpoint("bert")
    module, examples = tiny.module(), tiny.examples(Train, 4)
    units = _units(module, "head")
    runs = [0]
    module.register_forward_hook(lambda *_: runs.__setitem__(0, runs[0] + 1))
    straight = score_units(
        module, [("ablation", units)], examples, task=tiny.task, scratch=tmp_path
    )[0]
    assert runs[0] == 4 * (len(units) + 1)
    lines = (tmp_path / "ablation.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "ablation.jsonl").write_text("".join(lines[:4]) + lines[4][:7])
    runs[0] = 0
    for _ in range(2):
        again = score_units(
            module, [("ablation", units)], examples, task=tiny.task, scratch=tmp_path
        )[0]
        assert np.array_equal(straight, again)
    assert runs[0] == 4 * (len(units) - 3)


def test_statistics_of_a_stopped_run_are_gone_on_from(
    tiny_checkpoint: Checkpoints, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = tiny_checkpoint("bert")
    module, examples = tiny.module(), tiny.examples(Train, 6)
    units = _units(module, "ffn")[:8]
    parts = [(c, units) for c in ("wanda", "taylor", "mask-gradient")]
    straight = score_units(module, parts, examples, task=tiny.task)
    monkeypatch.setattr("exporter.compress.statistics.SAVE_S", 0.0)
    runs = [0]

    def stop(*_: Any) -> None:
        runs[0] += 1
        if runs[0] == 4:
            raise KeyboardInterrupt

    handle = module.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        score_units(module, parts, examples, task=tiny.task, scratch=tmp_path)
    again = score_units(module, parts, examples, task=tiny.task, scratch=tmp_path)
    handle.remove()
    assert runs[0] == 4 + 3
    assert all(np.array_equal(a, b) for a, b in zip(straight, again, strict=True))
