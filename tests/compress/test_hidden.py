"""Hidden width goes from everywhere at once, and what is cut computes what is switched off."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exporter.compress.hidden import hidden_axes, score_hidden
from exporter.compress.plan import plan_removal
from exporter.compress.prune import prune
from exporter.compress.removal import mask, remove
from exporter.compress.structure import Structure, parameter_count, structure_of
from exporter.errors import ProfileError
from exporter.models.examples import Train
from exporter.recipe import Pruning
from tests.compress import drawn
from tests.compress.conftest import Tiny
from tests.compress.test_prune import _flat

Checkpoints = Callable[[str], Tiny]
_SOME = settings(
    max_examples=6,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def _known(module: Any) -> Structure:
    structure = structure_of(module)
    assert structure is not None
    return structure


@pytest.mark.parametrize("family", drawn.family_names())
def test_removed_is_masked_whatever_the_architecture(family: str) -> None:
    @given(st.data())
    @_SOME
    def check(data: st.DataObject) -> None:
        module = data.draw(drawn.modules(family))
        removal = data.draw(drawn.removals(_known(module)))
        smaller = remove(module, removal)
        expected = drawn.answers(mask(module, removal))
        scale = max(1.0, float(expected.abs().max()))
        assert (drawn.answers(smaller) - expected).abs().max() <= 1e-5 * scale
        with tempfile.TemporaryDirectory() as directory:
            smaller.save_pretrained(directory)  # type: ignore[operator]
            loaded = drawn.load(family, directory)
        assert torch.equal(drawn.answers(loaded), drawn.answers(smaller))
        assert parameter_count(loaded) == parameter_count(smaller)

    check()


def test_axes_are_those_of_the_stream_and_no_others(tiny_checkpoint: Checkpoints) -> None:
    module = tiny_checkpoint("qwen3").module()
    axes = hidden_axes(module, _known(module))
    layer = "model.layers.0."
    assert axes["model.embed_tokens.weight"] == axes["lm_head.weight"] == (1,)
    assert axes[layer + "self_attn.q_proj.weight"] == axes[layer + "mlp.up_proj.weight"] == (1,)
    assert axes[layer + "self_attn.o_proj.weight"] == axes[layer + "mlp.down_proj.weight"] == (0,)
    assert axes["model.norm.weight"] == axes[layer + "input_layernorm.weight"] == (0,)
    assert layer + "self_attn.q_norm.weight" not in axes  # runs over a head


def test_heads_as_wide_as_the_stream_are_no_part_of_it(tiny_checkpoint: Checkpoints) -> None:
    module = tiny_checkpoint("bert").module()
    axes = hidden_axes(module, _known(module))
    layer = "bert.encoder.layer.0.attention."
    assert axes[layer + "self.query.weight"] == (1,)
    assert layer + "self.query.bias" not in axes
    assert axes[layer + "output.dense.weight"] == axes[layer + "output.dense.bias"] == (0,)
    assert axes["bert.pooler.dense.weight"] == (0, 1)
    assert axes["bert.embeddings.position_embeddings.weight"] == (1,)
    assert axes["classifier.weight"] == (1,)


@pytest.mark.parametrize("family", ["bert", "modernbert", "gpt2", "llama", "gemma3", "vit"])
def test_pruned_width_is_said_by_the_config(family: str, tiny_checkpoint: Checkpoints) -> None:
    tiny = tiny_checkpoint(family)
    module = tiny.module()
    result = prune(module, tiny.task, tiny.examples(Train), Pruning(hidden=0.5, ffn=0.5))
    before, after = _known(module), _known(result.module)
    assert (before.hidden, after.hidden, after.ffn) == (32, 16, before.ffn // 2)
    assert after.head_dim == before.head_dim
    follows = before.family.heads_follow_width
    assert after.groups == (before.groups // 2 if follows else before.groups)
    assert result.removed["hidden"]["before"] == 32
    assert result.removed["hidden"]["after"] == 16
    assert ("heads" in result.removed) is follows
    assert not result.skipped


def test_a_silent_channel_goes_first(tiny_checkpoint: Checkpoints) -> None:
    tiny = tiny_checkpoint("llama")
    module = tiny.module()
    structure = _known(module)
    with torch.no_grad():
        for name, along in hidden_axes(module, structure).items():
            for axis in along:
                module.get_parameter(name).select(axis, 5).mul_(1e-3)
    scores = score_hidden(module, structure, tiny.examples(Train))
    assert scores.argmin() == 5
    assert scores.max() == 1


def test_answers_that_are_hidden_states_keep_their_width(tiny_checkpoint: Checkpoints) -> None:
    tiny = tiny_checkpoint("bert-encoder")
    module = tiny.module()
    result = prune(module, tiny.task, tiny.examples(Train), Pruning(hidden=0.5))
    assert result.module is module
    assert "its hidden state" in result.skipped[0]


def test_widths_are_rounded_to_what_kernels_like_and_configs_accept() -> None:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=192,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=8,
    )
    structure = _known(transformers.LlamaForCausalLM(config))
    channels = np.arange(192.0)
    for ratio, width in ((0.5, 96), (0.3, 144), (0.02, 192)):  # six heads divide all of them
        removal = plan_removal(structure, _flat(structure), Pruning(hidden=ratio), channels)
        kept = removal.hidden or range(192)
        assert len(kept) == width
    fewer = plan_removal(structure, _flat(structure), Pruning(hidden=0.3, heads=0.3), channels)
    assert len(fewer.groups[0]) == 2
    assert len(fewer.hidden or ()) == 128  # a multiple of four heads


def test_a_width_that_leaves_nothing_is_refused(tiny_checkpoint: Checkpoints) -> None:
    structure = _known(tiny_checkpoint("bert").module())
    with pytest.raises(ProfileError, match=r"pruning\.hidden: must leave at least 8 of 32"):
        plan_removal(structure, _flat(structure), Pruning(hidden=0.95), np.ones(32))


def test_too_small_a_share_of_the_width_is_said(tiny_checkpoint: Checkpoints) -> None:
    structure = _known(tiny_checkpoint("bert").module())
    removal = plan_removal(structure, _flat(structure), Pruning(hidden=0.1), np.ones(32))
    assert removal.hidden is None
    assert "accepts no width nearer" in removal.skipped[0]
