"""What is cut out computes what is switched off, and stays an ordinary checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from exporter.compress.families import FAMILIES
from exporter.compress.importance import score_structure
from exporter.compress.plan import plan_removal
from exporter.compress.removal import Removal, mask, remove
from exporter.compress.structure import Structure, parameter_count, structure_of
from exporter.models.load import load_checkpoint
from exporter.models.runner import forward_names, named_outputs
from exporter.recipe import Pruning
from tests.compress.conftest import TRANSFORMERS, Tiny

Checkpoints = Callable[[str], Tiny]

_SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "pad_token_id": 0,
}
_GROUPED = {**_SMALL, "num_key_value_heads": 2}

# Families that have no tiny checkpoint: the auto class and the config of one with four layers.
OTHERS: dict[str, tuple[Any, Callable[[], Any]]] = {
    "roberta": (
        transformers.AutoModelForSequenceClassification,
        lambda: transformers.RobertaConfig(**{**_SMALL, "max_position_embeddings": 80}),
    ),
    "xlm-roberta": (
        transformers.AutoModelForSequenceClassification,
        lambda: transformers.XLMRobertaConfig(**{**_SMALL, "max_position_embeddings": 80}),
    ),
    "camembert": (
        transformers.AutoModelForSequenceClassification,
        lambda: transformers.CamembertConfig(**{**_SMALL, "max_position_embeddings": 80}),
    ),
    "electra": (
        transformers.AutoModelForSequenceClassification,
        lambda: transformers.ElectraConfig(**_SMALL, embedding_size=16),
    ),
    "distilbert": (
        transformers.AutoModelForSequenceClassification,
        lambda: transformers.DistilBertConfig(
            vocab_size=64, dim=32, n_layers=4, n_heads=4, hidden_dim=64, pad_token_id=0
        ),
    ),
    "mistral": (
        transformers.AutoModelForCausalLM,
        lambda: transformers.MistralConfig(**_GROUPED, head_dim=8),
    ),
    "qwen2": (transformers.AutoModelForCausalLM, lambda: transformers.Qwen2Config(**_GROUPED)),
    "smollm3": (
        transformers.AutoModelForCausalLM,
        lambda: transformers.SmolLM3Config(**_GROUPED, no_rope_layers=[1, 0, 1, 1]),
    ),
    "gemma": (
        transformers.AutoModelForCausalLM,
        lambda: transformers.GemmaConfig(**_GROUPED, head_dim=8),
    ),
    "gemma2": (
        transformers.AutoModelForCausalLM,
        lambda: transformers.Gemma2Config(**_GROUPED, head_dim=8, sliding_window=8),
    ),
    "phi3": (transformers.AutoModelForCausalLM, lambda: transformers.Phi3Config(**_GROUPED)),
    "deit": (
        transformers.AutoModelForImageClassification,
        lambda: transformers.DeiTConfig(
            architectures=["DeiTForImageClassification"],
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=64,
            image_size=16,
            patch_size=4,
        ),
    ),
}


def _feeds(module: Any) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    if "pixel_values" in forward_names(module):
        return {"pixel_values": torch.randn(3, 3, 16, 16, generator=generator)}
    attention_mask = torch.ones(3, 20, dtype=torch.long)
    attention_mask[1, 13:] = 0
    return {
        "input_ids": torch.randint(5, 40, (3, 20), generator=generator),
        "attention_mask": attention_mask,
    }


def _answers(module: Any) -> torch.Tensor:
    feeds = _feeds(module)
    with torch.no_grad():
        outputs = named_outputs(module(**feeds))
    answer = outputs.get("logits", outputs.get("last_hidden_state"))
    assert answer is not None
    if answer.shape[:2] == (3, 20):
        return answer[feeds["attention_mask"].bool()]
    return answer


def _some(structure: Structure, **counts: int) -> Removal:
    """Every other unit and group, and the first and last layers."""
    layers = counts.get("layers", structure.layers)
    kept = sorted({*range(layers - 1), structure.layers - 1})
    units = tuple(range(0, structure.ffn, 2)) if "ffn" in counts else tuple(range(structure.ffn))
    groups = tuple(range(structure.groups))
    if "groups" in counts:
        groups = groups[-counts["groups"] :]
    return Removal(tuple(kept), (units,) * len(kept), (groups,) * len(kept))


def _same(module: Any, removal: Removal, auto: Any, directory: Path) -> Any:
    """Removed, masked, and saved-and-loaded answers agree; returns the loaded module."""
    smaller = remove(module, removal)
    expected = _answers(mask(module, removal))
    assert not torch.allclose(expected, _answers(module), atol=1e-3), "removal must matter"
    assert (_answers(smaller) - expected).abs().max() <= 1e-5
    smaller.save_pretrained(directory)
    loaded = auto(directory)
    assert (_answers(loaded) - expected).abs().max() <= 1e-5
    assert parameter_count(loaded) == parameter_count(smaller) < parameter_count(module)
    return loaded


@pytest.mark.parametrize("part", ["ffn", "groups", "layers", "all"])
@pytest.mark.parametrize("family", TRANSFORMERS)
def test_removed_is_masked(
    family: str, part: str, tiny_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    tiny = tiny_checkpoint(family)
    module = tiny.module()
    structure = structure_of(module)
    assert structure is not None
    if part == "groups" and "heads" in structure.skipped:
        return
    counts = {"ffn": structure.ffn // 2, "layers": structure.layers - 1}
    if "heads" not in structure.skipped:
        counts["groups"] = structure.groups // 2
    wanted = counts if part == "all" else {part: counts[part]}

    loaded = _same(
        module,
        _some(structure, **wanted),
        lambda d: load_checkpoint(d, tiny.task.name),
        tmp_path,
    )

    after = structure_of(loaded)
    assert after is not None
    assert after.layers == wanted.get("layers", structure.layers)
    assert after.ffn == wanted.get("ffn", structure.ffn)
    assert after.groups == wanted.get("groups", structure.groups)


@pytest.mark.parametrize("family", sorted(OTHERS))
def test_removed_is_masked_in_every_listed_family(family: str, tmp_path: Path) -> None:
    auto, config = OTHERS[family]
    torch.manual_seed(0)
    module = auto.from_config(config(), attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(4)
    assert module.config.model_type == family
    structure = structure_of(module)
    assert structure is not None
    counts = {"ffn": structure.ffn // 2, "layers": 3}
    if "heads" not in structure.skipped:
        counts["groups"] = structure.groups // 2
    _same(
        module,
        _some(structure, **counts),
        lambda d: auto.from_pretrained(d, attn_implementation="eager").eval(),
        tmp_path,
    )


def test_every_family_is_tested() -> None:
    tested = {"gemma3_text" if f == "gemma3" else f for f in TRANSFORMERS} | set(OTHERS)
    assert tested == set(FAMILIES)


def test_per_layer_settings_follow_their_layers(tiny_checkpoint: Checkpoints) -> None:
    module = tiny_checkpoint("gemma3").module()
    structure = structure_of(module)
    assert structure is not None
    whole = tuple(range(structure.ffn)), tuple(range(structure.groups))
    smaller: Any = remove(module, Removal((1,), (whole[0],), (whole[1],)))
    assert module.config.layer_types == ["sliding_attention", "full_attention"]
    assert smaller.config.layer_types == ["full_attention"]


def test_removal_leaves_the_given_module_alone(tiny_checkpoint: Checkpoints) -> None:
    module = tiny_checkpoint("qwen3").module()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    config = module.config.to_dict()
    structure = structure_of(module)
    assert structure is not None
    state = torch.get_rng_state()
    remove(module, _some(structure, ffn=32, groups=1, layers=1))
    mask(module, _some(structure, ffn=32, groups=1, layers=1))
    assert torch.equal(state, torch.get_rng_state())
    assert module.config.to_dict() == config
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_tied_embeddings_stay_tied(tiny_checkpoint: Checkpoints) -> None:
    module = tiny_checkpoint("qwen3").module()
    structure = structure_of(module)
    assert structure is not None
    smaller: Any = remove(module, _some(structure, ffn=32))
    assert smaller.lm_head.weight is smaller.model.embed_tokens.weight


def test_first_layer_of_modernbert_stays(tiny_checkpoint: Checkpoints) -> None:
    module = tiny_checkpoint("modernbert").module()
    structure = structure_of(module)
    assert structure is not None
    importance = score_structure(module, structure, None, criterion="magnitude")
    importance.layers[:] = [0.0, 0.5, 1.0]
    removal = plan_removal(structure, importance, Pruning(layers=0.6))
    assert removal.layers == (0,)


def test_unsupported_families_have_no_structure(tiny_checkpoint: Checkpoints) -> None:
    assert structure_of(tiny_checkpoint("mobilenetv2").module()) is None
    assert structure_of(torch.nn.Linear(4, 4)) is None
