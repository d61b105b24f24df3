"""Scores are what their papers say, worked out again by hand on small models."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from exporter.compress.compensate import DAMPING, compensate
from exporter.compress.criteria import Scene
from exporter.compress.criteria.obs import hessian
from exporter.compress.depth import rank_layers
from exporter.compress.divergence import divergence
from exporter.compress.hidden import score_hidden
from exporter.compress.importance import score_units, score_weights
from exporter.compress.masking import masked
from exporter.compress.removal import Removal
from exporter.compress.replicas import Share
from exporter.compress.sparsity_schedule import RisingSparsity
from exporter.compress.statistics import Statistics
from exporter.compress.structure import Structure, structure_of
from exporter.compress.teaching import Answering, Learner
from exporter.compress.units import Slice, Unit, structure_units
from exporter.models.examples import Examples, Train
from tests.compress.conftest import Tiny

Checkpoints = Callable[[str], Tiny]


def _known(module: Any) -> Structure:
    structure = structure_of(module)
    assert structure is not None
    return structure


class _Plain(nn.Module):
    """One matrix."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.layer.weight = nn.Parameter(weight)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": self.layer(x)}


def _rows(values: torch.Tensor) -> Examples[Train]:
    feeds = tuple({"x": row.numpy()} for row in values)
    ids = tuple(str(i) for i in range(len(feeds)))
    return Examples(Train, ids, feeds, tuple(range(len(feeds))), None, {})


def _feeds(examples: Examples[Any]) -> list[dict[str, torch.Tensor]]:
    return [{k: torch.from_numpy(v)[None] for k, v in feed.items()} for feed in examples.feeds]


def _entered(module: Any, part: nn.Module, examples: Examples[Any]) -> torch.Tensor:
    """What a part takes in, (positions, in) float64."""
    seen: list[torch.Tensor] = []
    handle = part.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, -2)))
    with torch.no_grad():
        for feeds in _feeds(examples):
            module(**feeds)
    handle.remove()
    return torch.cat(seen).double()


def test_wanda_is_the_weight_by_the_norm_of_its_input() -> None:
    """3 · 1 > 2 · 1.2 > 1.5 · 1.5; by squares of norms it would be the other way round."""
    module = _Plain(torch.tensor([[3.0, 2.0, 1.5]]))
    inputs = torch.tensor([[1.0, 1.2, 1.5], [-1.0, -1.2, 1.5]])
    found = score_weights(module, _rows(inputs), "wanda")["layer.weight"]
    assert found.argsort().tolist() == [[2, 1, 0]]
    units = [Unit("ffn", str(i), None, (Slice("layer.weight", 1, (i,)),)) for i in range(3)]
    effects = score_units(module, [("wanda", units)], _rows(inputs))[0]
    np.testing.assert_allclose(effects, [3.0, 2.4, 2.25], rtol=1e-6)


def test_taylor_and_fisher_are_made_of_each_examples_gradient(
    tiny_checkpoint: Checkpoints,
) -> None:
    tiny = tiny_checkpoint("bert")
    module, examples = tiny.module(), tiny.examples(Train, 3)
    unit = structure_units(module, _known(module), "ffn")[5]
    parameters = dict(module.named_parameters())
    slopes: dict[str, list[torch.Tensor]] = {one.parameter: [] for one in unit.slices}
    assert examples.labels is not None
    for feeds, label in zip(_feeds(examples), examples.labels, strict=True):
        logits = module(**feeds).logits
        loss = nn.functional.cross_entropy(logits, torch.tensor([int(label)]))
        found = torch.autograd.grad(loss, [parameters[name] for name in slopes])
        for name, slope in zip(slopes, found, strict=True):
            slopes[name].append(slope.double())
    taylor = fisher = 0.0
    for one in unit.slices:
        each = torch.stack(slopes[one.parameter])
        weight = parameters[one.parameter].detach().double()
        index = torch.tensor(one.index)
        first, second = each.mean(0) * weight, each.square().mean(0) * weight.square() / 2
        taylor += float(first.index_select(one.axis or 0, index).sum())
        fisher += float(second.index_select(one.axis or 0, index).sum())
    parts = [(name, [unit]) for name in ("taylor", "fisher")]
    told = score_units(module, parts, examples, task=tiny.task)
    assert told[0][0] == pytest.approx(abs(taylor), rel=1e-4)
    assert told[1][0] == pytest.approx(fisher, rel=1e-4)


def test_block_influence_is_the_mean_turn_of_the_stream(tiny_checkpoint: Checkpoints) -> None:
    tiny = tiny_checkpoint("llama")
    module, examples = tiny.module(), tiny.examples(Train, 3)
    layers = module.model.layers
    before, after = (_entered(module, part, examples) for part in (layers[1], module.model.norm))
    turned = 1 - nn.functional.cosine_similarity(before, after, dim=1).mean()
    unit = structure_units(module, _known(module), "layer")[1]
    found = score_units(module, [("block-influence", [unit])], examples)[0]
    assert found[0] == pytest.approx(float(turned), rel=1e-4)


def test_obs_of_a_row_is_all_that_it_puts_out() -> None:
    torch.manual_seed(0)
    module, inputs = _Plain(torch.randn(3, 4)), torch.randn(30, 4) @ torch.randn(4, 4)
    row = Unit("row", "row", None, (Slice("layer.weight", 0, (1,)),))
    found = score_units(module, [("obs", [row])], _rows(inputs), damping=0.0)[0]
    put_out = (inputs @ module.layer.weight[1]).detach().double()
    assert found[0] == pytest.approx(float(put_out.square().mean()) / 2, rel=1e-5)


def test_groups_of_a_convolution_do_not_make_up_for_each_other() -> None:
    convolution = nn.Conv2d(4, 4, 1, groups=2)
    second = torch.arange(16, dtype=torch.float64).view(4, 4)
    sums = {"count c": torch.tensor(100), "second c": 100 * (second + second.T)}
    found = hessian(
        Scene(nn.Module(), statistics=Statistics(1, sums), damping=0.0), "c", convolution
    )
    assert (found[:2, 2:] == 0).all()
    assert (found[2:, :2] == 0).all()
    assert torch.equal(found[2:, 2:], (second + second.T)[2:, 2:])


def test_channels_of_the_stream_are_scored_by_what_each_reader_takes(
    tiny_checkpoint: Checkpoints,
) -> None:
    """E[x²] · Σ w² as a share in every matrix that reads the stream, so that none outshouts."""
    tiny = tiny_checkpoint("llama")
    module, examples = tiny.module(), tiny.examples(Train, 3)
    with torch.no_grad():
        module.model.layers[0].mlp.up_proj.weight.mul_(50)
        module.model.layers[0].self_attn.q_proj.weight[:, 3].mul_(5)
    readers = [module.lm_head]
    for layer in module.model.layers:
        own = layer.self_attn
        readers += [own.q_proj, own.k_proj, own.v_proj, layer.mlp.gate_proj, layer.mlp.up_proj]
    total = torch.zeros(32, dtype=torch.float64)
    for part in readers:
        energy = _entered(module, part, examples).square().sum(0)
        carried = energy * part.weight.detach().double().square().sum(0)
        total += carried / carried.sum()
    found = score_hidden(module, _known(module), examples)
    np.testing.assert_allclose(found, (total / total.max()).numpy(), rtol=1e-4)


def test_least_squares_solves_for_centred_inputs_with_a_small_ridge(
    tiny_checkpoint: Checkpoints,
) -> None:
    tiny = tiny_checkpoint("bert")
    module, examples = tiny.module(), tiny.examples(Train, 32)
    structure = _known(module)
    gone, kept = [1, 4, 9], [i for i in range(64) if i not in (1, 4, 9)]
    groups = tuple(range(structure.groups))
    removal = Removal((0, 1), (tuple(kept),) * 2, (groups,) * 2)
    consumer = module.bert.encoder.layer[0].output.dense
    inputs = _entered(module, consumer, examples)
    covariance = torch.cov(inputs.T, correction=0)
    inner = covariance[kept][:, kept]
    assert DAMPING == 0.01
    inner = inner + 0.01 * inner.diagonal().mean() * torch.eye(len(kept))
    shares = torch.linalg.solve(inner, covariance[kept][:, gone]).T  # (gone, kept)
    lost = consumer.weight.detach().double()[:, gone]
    changed, _ = compensate(module, structure, removal, examples, "least-squares")
    after = changed.bert.encoder.layer[0].output.dense
    expected = consumer.weight.detach().double()[:, kept] + lost @ shares
    torch.testing.assert_close(after.weight.double()[:, kept], expected, rtol=1e-3, atol=1e-5)
    mean = inputs.mean(0)
    bias = consumer.bias.double() + lost @ (mean[gone] - shares @ mean[kept])
    torch.testing.assert_close(after.bias.double(), bias, rtol=1e-3, atol=1e-5)


def test_the_loss_weighs_distillation_at_its_temperature_and_labels(
    tiny_checkpoint: Checkpoints,
) -> None:
    tiny = tiny_checkpoint("bert")
    student, teacher = tiny.module().eval(), tiny.module().eval()
    with torch.no_grad():
        student.classifier.weight.mul_(-60)
        teacher.classifier.weight.mul_(60)
    batch = next(tiny.examples(Train, 4).batches(4))
    ours, theirs = (Answering(m, torch.device("cpu"), half=False) for m in (student, teacher))
    learner = Learner(ours, theirs, tiny.task, distill_weight=0.7, temperature=3.0)
    found = learner(batch, Share(own=0.5, distilled=0.25, feeds=1.0))
    feeds = ours.feeds(batch)
    told, taught = student(**feeds), teacher(**feeds)
    own = nn.functional.cross_entropy(told.logits, ours.labels(batch))
    apart = tiny.task.distill_loss(told, taught, feeds, 3.0)
    cold = float(tiny.task.distill_loss(told, taught, feeds, 1.0))
    assert float(apart) != pytest.approx(cold, rel=1e-3)
    assert float(found) == pytest.approx(
        0.7 * 0.25 * float(apart) + 0.3 * 0.5 * float(own), rel=1e-5
    )


def test_zeros_stay_whatever_scores_say_later(tiny_checkpoint: Checkpoints) -> None:
    """What is zero has learnt nothing since: a score that changed its mind brings nothing back."""
    module = tiny_checkpoint("bert").module()
    calls = 0

    def score(now: Any) -> dict[str, torch.Tensor]:
        nonlocal calls
        calls += 1
        sizes = score_weights(now, None, "magnitude")
        return sizes if calls % 2 else {name: 1 - value for name, value in sizes.items()}

    hook = RisingSparsity(0.5, score)
    before: dict[str, torch.Tensor] = {}
    for step in range(1, 7):
        hook.before_step(step, 10, module)
        zeros = hook.state()["zeros"]
        for name, gone in zeros.items():
            assert (gone | ~before.get(name, torch.zeros_like(gone))).all()
        before = zeros
    assert calls > 2


def test_each_next_layer_is_sought_with_those_already_out(tiny_checkpoint: Checkpoints) -> None:
    """Not the layers that are each missed least, but that are together."""
    tiny = tiny_checkpoint("llama")
    config = tiny.module().config
    config.num_hidden_layers = 5
    examples = tiny.examples(Train, 8)
    torch.manual_seed(1)
    module: Any = type(tiny.module())(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)
    structure = _known(module)
    units = structure_units(module, structure, "layer")

    def moved(*layers: int) -> float:
        other = copy.deepcopy(module)
        with ExitStack() as off:
            for layer in layers:
                off.enter_context(masked(other, units[layer]))
            return divergence(module, other, tiny.task, examples, 8)

    alone = [moved(i) for i in range(5)]
    first = int(np.argmin(alone))
    rest = [i for i in range(5) if i != first]
    second = min(rest, key=lambda i: moved(first, i))
    assert second != min(rest, key=lambda i: alone[i]), "a case in which it matters"
    scores = rank_layers(module, structure, tiny.task, examples, 2, batch_size=8)
    assert np.argsort(scores, kind="stable")[:2].tolist() == [first, second]
