"""A recipe's ratios become counts that a config can say, or a sentence why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporter.compress.importance import Importance
from exporter.compress.plan import plan_removal
from exporter.compress.prune import prune
from exporter.compress.structure import Structure, parameter_count, structure_of
from exporter.errors import DataError, ProfileError
from exporter.models.examples import Test, Train
from exporter.models.load import load_checkpoint
from exporter.recipe import Pruning
from tests.compress.conftest import TRANSFORMERS, Tiny

Checkpoints = Callable[[str], Tiny]


def _known(module: Any) -> Structure:
    structure = structure_of(module)
    assert structure is not None
    return structure


def _flat(structure: Structure) -> Importance:
    return Importance(
        np.tile(np.arange(structure.ffn) / structure.ffn, (structure.layers, 1)),
        np.tile(np.arange(structure.groups) + 1.0, (structure.layers, 1)),
        np.arange(structure.layers) + 1.0,
    )


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_pruned_checkpoint_is_ordinary(
    family: str, tiny_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    tiny = tiny_checkpoint(family)
    module = tiny.module()
    result = prune(
        module,
        tiny.task,
        tiny.examples(Train),
        Pruning(ffn=0.5, heads=0.5, layers=0.5, sparsity=0.3),
    )
    result.module.save_pretrained(tmp_path)  # type: ignore[operator]
    loaded = load_checkpoint(tmp_path, tiny.task.name)  # raises if a weight does not fit
    structure, before = _known(loaded), _known(module)
    assert structure.ffn == result.removed["ffn"]["after"] == before.ffn // 2
    assert structure.layers == result.removed["layers"]["after"] < before.layers
    if "heads" not in before.skipped:
        assert structure.groups == result.removed["heads"]["after"] == before.groups // 2
        assert not result.skipped
    else:
        assert "hidden width" in result.skipped[0]
    assert result.removed["parameters"]["after"] == parameter_count(loaded)
    assert result.removed["parameters"]["nonzero"] < parameter_count(loaded)
    assert result.removed["divergence"] > 0
    assert result.removed == json.loads(json.dumps(result.removed, allow_nan=False))
    expected, found = result.module.state_dict(), loaded.state_dict()
    assert all(torch.equal(expected[name], value) for name, value in found.items())


def test_same_input_prunes_the_same(tiny_checkpoint: Checkpoints) -> None:
    tiny = tiny_checkpoint("qwen3")
    pruning = Pruning(ffn=0.25, heads=0.5)
    one = prune(tiny.module(), tiny.task, tiny.examples(Train), pruning)
    other = prune(tiny.module(), tiny.task, tiny.examples(Train), pruning)
    assert one.removed == other.removed
    state = other.module.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in one.module.state_dict().items())


def test_the_most_important_stay(tiny_checkpoint: Checkpoints) -> None:
    structure = _known(tiny_checkpoint("qwen3").module())
    removal = plan_removal(structure, _flat(structure), Pruning(ffn=0.5, heads=0.5, layers=0.5))
    assert removal.layers == (structure.layers - 1,)
    assert removal.ffn == (tuple(range(32, 64)),)
    assert removal.groups == ((1,),)


def test_widths_stay_multiples(tiny_checkpoint: Checkpoints) -> None:
    structure = _known(tiny_checkpoint("qwen3").module())
    for ratio in (0.1, 0.3, 0.55, 0.8):
        width = len(plan_removal(structure, _flat(structure), Pruning(ffn=ratio)).ffn[0])
        assert width % 8 == 0
        assert abs(width - 64 * (1 - ratio)) <= 4


def test_a_third_of_six_is_two(tiny_checkpoint: Checkpoints) -> None:
    """0.33 as people write it removes two of six layers, not one."""
    module = tiny_checkpoint("bert").module()
    small = _known(module)
    values = {name: getattr(small, name) for name in small.__dataclass_fields__}
    structure = Structure(**{**values, "layers": 6})
    kept = plan_removal(structure, _flat(structure), Pruning(layers=0.33)).layers
    assert kept == (2, 3, 4, 5)


@pytest.mark.parametrize(
    ("pruning", "part"),
    [
        (Pruning(layers=0.9), "layers"),
        (Pruning(heads=0.9), "heads"),
        (Pruning(ffn=0.99), "ffn"),
    ],
)
def test_ratios_that_leave_nothing_are_refused(
    pruning: Pruning, part: str, tiny_checkpoint: Checkpoints
) -> None:
    structure = _known(tiny_checkpoint("llama").module())
    with pytest.raises(ProfileError, match=rf"pruning\.{part}: must leave at least"):
        plan_removal(structure, _flat(structure), pruning)


def test_counts_that_the_config_refuses_are_avoided() -> None:
    """Llama's config wants a hidden width that its number of heads divides."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=8,
    )
    structure = _known(transformers.LlamaForCausalLM(config))
    assert structure.group_counts == (1, 2, 4)
    assert len(plan_removal(structure, _flat(structure), Pruning(heads=0.75)).groups[0]) == 1
    removal = plan_removal(structure, _flat(structure), Pruning(heads=0.25))
    assert len(removal.groups[0]) == 4
    assert "accepts no smaller number" in removal.skipped[0]


def test_too_little_to_remove_is_said(tiny_checkpoint: Checkpoints) -> None:
    tiny = tiny_checkpoint("bert")
    module = tiny.module()
    result = prune(module, tiny.task, tiny.examples(Train), Pruning(layers=0.1, heads=0.5))
    assert result.module is module
    assert result.removed == {}
    assert len(result.skipped) == 2


def test_conv_nets_keep_their_units_but_can_be_sparse(tiny_checkpoint: Checkpoints) -> None:
    tiny = tiny_checkpoint("mobilenetv2")
    module, examples = tiny.module(), tiny.examples(Train, 4)
    result = prune(module, tiny.task, examples, Pruning(ffn=0.5, layers=0.5))
    assert result.module is module
    assert result.removed == {}
    assert "mobilenet_v2" in result.skipped[0]
    sparse = prune(module, tiny.task, examples, Pruning(ffn=0.5, sparsity=0.5))
    assert sparse.removed["sparsity"] == pytest.approx(0.5, abs=0.01)
    assert "mobilenet_v2" in sparse.skipped[0]


def test_layers_of_a_numbered_gpt2_stay(tiny_checkpoint: Checkpoints) -> None:
    module = tiny_checkpoint("gpt2").module()
    module.config.scale_attn_by_inverse_layer_idx = True
    structure = _known(module)
    removal = plan_removal(structure, _flat(structure), Pruning(layers=0.5))
    assert len(removal.layers) == structure.layers
    assert "scales attention" in removal.skipped[0]


def test_long_documents_are_sampled(tiny_checkpoint: Checkpoints) -> None:
    """Not more feeds than asked for are looked at, from all of the examples."""
    tiny = tiny_checkpoint("qwen3")
    module, examples = tiny.module(), tiny.examples(Train, 12)
    seen = 0

    def count(part: Any, args: Any, kwargs: Any) -> None:
        nonlocal seen
        seen += len(kwargs["input_ids"])

    handle = module.register_forward_pre_hook(count, with_kwargs=True)
    prune(module, tiny.task, examples, Pruning(ffn=0.5, examples=3))
    handle.remove()
    # Importance, compensation, how far the answers moved without it, with it and in all; one for
    # FLOPs; and what each layer's units cost, beside the whole module's answers.
    assert seen == 5 * 3 + 1 + (1 + module.config.num_hidden_layers) * 3


def test_other_splits_are_refused(tiny_checkpoint: Checkpoints) -> None:
    tiny = tiny_checkpoint("bert")
    with pytest.raises(DataError, match="the test split"):
        prune(tiny.module(), tiny.task, tiny.examples(Test), Pruning(ffn=0.5))


@pytest.mark.parametrize("ratios", [{"ffn": 0.5}, {"layers": 0.5}, {"sparsity": 0.5}], ids=str)
def test_no_examples_are_refused_whatever_scores(
    ratios: dict[str, float], tiny_checkpoint: Checkpoints
) -> None:
    """Magnitude needs no data, but what a removal costs cannot be told without."""
    tiny = tiny_checkpoint("bert")
    none = tiny.examples(Train).head(0)
    with pytest.raises(DataError, match=r"the train split: must hold examples .*, got none"):
        prune(tiny.module(), tiny.task, none, Pruning(criterion="magnitude", **ratios))


@pytest.mark.parametrize("ratios", [{"ffn": 0.5}, {"sparsity": 0.5}], ids=str)
def test_answers_that_become_no_numbers_are_told_as_json_can(
    ratios: dict[str, float], tiny_checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report that held NaN could not be read again."""
    tiny = tiny_checkpoint("bert")
    monkeypatch.setattr(type(tiny.task), "distill_loss", lambda *_: torch.tensor(float("nan")))
    removed = prune(tiny.module(), tiny.task, tiny.examples(Train), Pruning(**ratios)).removed
    assert removed["divergence"] is None
    json.dumps(removed, allow_nan=False)
