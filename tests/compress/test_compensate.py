"""What is left takes over what was removed, before any training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from exporter.compress import compensate as compensation
from exporter.compress.compensate import compensate
from exporter.compress.divergence import divergence
from exporter.compress.prune import prune
from exporter.compress.removal import Removal, mask, remove
from exporter.compress.structure import Structure, matrix_of, structure_of
from exporter.models.examples import Train
from exporter.recipe import Pruning
from tests.compress.conftest import Tiny

Checkpoints = Callable[[str], Tiny]


def _known(module: Any) -> Structure:
    structure = structure_of(module)
    assert structure is not None
    return structure


def _without(
    structure: Structure, units: set[int], groups: frozenset[int] = frozenset()
) -> Removal:
    layers = tuple(range(structure.layers))
    kept = tuple(i for i in range(structure.ffn) if i not in units)
    stay = tuple(i for i in range(structure.groups) if i not in groups)
    return Removal(layers, (kept,) * len(layers), (stay,) * len(layers))


def _moved(tiny: Tiny, module: Any, other: Any) -> float:
    return divergence(module, other, tiny.task, tiny.examples(Train, 32), 8)


@pytest.mark.parametrize("family", ["bert", "gpt2", "vit"])
def test_what_a_unit_always_says_moves_into_the_bias(
    family: str, tiny_checkpoint: Checkpoints
) -> None:
    tiny = tiny_checkpoint(family)
    module = tiny.module()
    structure = _known(module)
    with torch.no_grad():
        for block in structure.blocks(module):
            name = structure.family.ffn_in[0].name
            matrix_of(block, name)[:4] = 0
            block.get_submodule(name).bias[:4] = 3.0
            matrix_of(block, structure.family.ffn_out)[:, :4] *= 8
    removal = _without(structure, {0, 1, 2, 3})
    plain = remove(module, removal)
    for method in ("bias", "least-squares"):
        changed, lacks = compensate(module, structure, removal, tiny.examples(Train, 32), method)
        before = _moved(tiny, module, plain)
        assert _moved(tiny, module, remove(changed, removal)) < before / 1000
        assert not lacks


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2", "modernbert"])
def test_a_unit_that_another_repeats_is_made_up_for(
    family: str, tiny_checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Least squares finds the twin, in families without biases too."""
    monkeypatch.setattr(compensation, "DAMPING", 1e-9)
    tiny = tiny_checkpoint(family)
    module = tiny.module()
    structure = _known(module)
    with torch.no_grad():
        for block in structure.blocks(module):
            matrix_of(block, structure.family.ffn_out)[:, 1] *= 8
            for projection in structure.family.ffn_in:
                ones = structure.rows(projection, units=[0], groups=[])
                twins = structure.rows(projection, units=[1], groups=[])
                matrix = matrix_of(block, projection.name)
                matrix[twins] = matrix[ones]
                bias = block.get_submodule(projection.name).bias
                if bias is not None:
                    bias[twins] = bias[ones]
    removal = _without(structure, {1})
    changed, _ = compensate(module, structure, removal, tiny.examples(Train, 64), "least-squares")
    before = _moved(tiny, module, remove(module, removal))
    assert _moved(tiny, module, remove(changed, removal)) < before / 1000


@pytest.mark.parametrize("part", ["ffn", "heads"])
@pytest.mark.parametrize("family", ["bert", "qwen3", "vit"])
def test_outputs_lie_nearer_on_the_data_that_was_seen(
    family: str, part: str, tiny_checkpoint: Checkpoints
) -> None:
    """Of the first layer's consumer: nothing before it has moved."""
    tiny = tiny_checkpoint(family)
    module = tiny.module()
    structure = _known(module)
    examples = tiny.examples(Train, 32)
    groups = frozenset({0} if part == "heads" else ())
    removal = _without(structure, set(range(16)) if part == "ffn" else set(), groups)
    names = structure.family
    path = f"{structure.stack}.0.{names.ffn_out if part == 'ffn' else names.attention_out}"

    def put_out(other: Any) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        handle = other.get_submodule(path).register_forward_hook(
            lambda part, args, out: seen.append(out.flatten(0, -2))
        )
        _run(other, tiny, examples)
        handle.remove()
        return torch.cat(seen)

    errors = {}
    original = put_out(module)
    for method in ("none", "bias", "least-squares"):
        changed = module
        if method != "none":
            changed, _ = compensate(module, structure, removal, examples, method)  # type: ignore[arg-type]
        errors[method] = float((put_out(mask(changed, removal)) - original).square().mean())
    assert errors["least-squares"] < errors["none"]
    if module.get_submodule(path).bias is None:
        assert errors["bias"] == errors["none"]
    else:
        assert errors["least-squares"] < errors["bias"] < errors["none"]


def _run(module: Any, tiny: Tiny, examples: Any) -> None:
    from exporter.compress.activations import tensors
    from exporter.models.runner import forward_names

    with torch.no_grad():
        for batch in examples.batches(8):
            module(**tensors(batch, forward_names(module)))


def test_a_family_without_bias_is_said(tiny_checkpoint: Checkpoints) -> None:
    tiny = tiny_checkpoint("llama")
    result = prune(
        tiny.module(),
        tiny.task,
        tiny.examples(Train),
        Pruning(ffn=0.5, heads=0.5, compensate="bias"),
    )
    assert [text.split(":")[0] for text in result.skipped] == [
        "compensation of ffn",
        "compensation of heads",
    ]
    assert "no bias" in result.skipped[0]


def test_too_little_data_for_moments_is_said(tiny_checkpoint: Checkpoints) -> None:
    tiny = tiny_checkpoint("bert")
    module = tiny.module()
    structure = _known(module)
    removal = _without(structure, {0})
    examples = tiny.examples(Train, 2)
    changed, lacks = compensate(module, structure, removal, examples, "least-squares")
    assert "positions are too few for the moments of 63 inputs" in lacks[0]
    likewise, _ = compensate(module, structure, removal, examples, "bias")
    state = likewise.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in changed.state_dict().items())


def test_passes_over_the_data_change_nothing(
    tiny_checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moments that do not fit at once are collected layer by layer, to the same effect."""
    tiny = tiny_checkpoint("qwen3")
    module = tiny.module()
    structure = _known(module)
    removal = _without(structure, {0, 1})
    examples = tiny.examples(Train, 16)
    once, _ = compensate(module, structure, removal, examples, "least-squares")
    monkeypatch.setattr(compensation, "MOMENTS_BYTES", 1)
    often, _ = compensate(module, structure, removal, examples, "least-squares")
    state = often.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in once.state_dict().items())


def test_facts_tell_what_compensation_brought(tiny_checkpoint: Checkpoints) -> None:
    tiny = tiny_checkpoint("qwen3")
    removed = prune(tiny.module(), tiny.task, tiny.examples(Train, 64), Pruning(ffn=0.25)).removed
    told = removed["compensation"]
    assert removed["divergence"] == told["divergence_with"] < told["divergence_without"]
    assert removed["compensation"]["method"] == "least-squares"
    work = removed["multiply_accumulates"]
    assert 0 < work["after"] < work["before"]
    assert work["share"] == pytest.approx(work["after"] / work["before"], abs=1e-4)
