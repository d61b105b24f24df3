"""Random architectures of every family: what Hypothesis draws configs and removals from."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from hypothesis import strategies as st

from exporter.compress.families import FAMILIES
from exporter.compress.removal import Removal
from exporter.compress.structure import Structure, accepts
from exporter.models.runner import forward_names, named_outputs

_TOKENS: dict[str, Any] = {
    "vocab_size": 48,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "pad_token_id": 0,
}
_CONFIGS: dict[str, Any] = {
    "bert": transformers.BertConfig,
    "roberta": transformers.RobertaConfig,
    "xlm-roberta": transformers.XLMRobertaConfig,
    "camembert": transformers.CamembertConfig,
    "electra": transformers.ElectraConfig,
    "distilbert": transformers.DistilBertConfig,
    "modernbert": transformers.ModernBertConfig,
    "gpt2": transformers.GPT2Config,
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
    "smollm3": transformers.SmolLM3Config,
    "gemma": transformers.GemmaConfig,
    "gemma2": transformers.Gemma2Config,
    "gemma3_text": transformers.Gemma3TextConfig,
    "phi3": transformers.Phi3Config,
    "vit": transformers.ViTConfig,
    "deit": transformers.DeiTConfig,
}
_IMAGES = ("vit", "deit")


def family_names() -> list[str]:
    """All families, in an order of their own."""
    return sorted(FAMILIES)


@st.composite
def modules(draw: st.DrawFn, family: str) -> Any:
    """A module of the family with random sizes and weights."""
    config = draw(_configs(family))
    torch.manual_seed(draw(st.integers(0, 99)))
    module = _auto(family).from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(4)
            else:  # norms and biases that differ from channel to channel
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


def load(family: str, directory: Any) -> Any:
    """The module as `save_pretrained` left it."""
    return _auto(family).from_pretrained(directory, attn_implementation="eager").eval()


@st.composite
def removals(draw: st.DrawFn, structure: Structure) -> Removal:
    """Some of everything that can go, hidden width included."""
    hidden, groups = structure.hidden, structure.groups
    if structure.family.heads_follow_width:
        groups = draw(st.integers(1, structure.groups))
        hidden = groups * structure.head_dim
    else:
        groups = draw(st.sampled_from(structure.group_counts))
        widths = [w for w in range(1, hidden + 1) if accepts(structure, groups, w)]
        hidden = draw(st.sampled_from(widths))
    count = draw(st.integers(1, structure.layers))
    layers = _some(draw, structure.layers, count, structure.pinned)
    units = draw(st.integers(1, structure.ffn))
    return Removal(
        layers,
        tuple(_some(draw, structure.ffn, units) for _ in layers),
        tuple(_some(draw, structure.groups, groups) for _ in layers),
        (),
        _some(draw, structure.hidden, hidden) if hidden < structure.hidden else None,
    )


def answers(module: Any) -> torch.Tensor:
    """Logits of the same few inputs, without those of padding."""
    generator = torch.Generator().manual_seed(0)
    if "pixel_values" in forward_names(module):
        feeds = {"pixel_values": torch.randn(2, 3, 8, 8, generator=generator)}
    else:
        attention = torch.ones(2, 12, dtype=torch.long)
        attention[1, 8:] = 0
        tokens = torch.randint(5, 40, (2, 12), generator=generator)
        feeds = {"input_ids": tokens, "attention_mask": attention}
    with torch.no_grad():
        logits: torch.Tensor = named_outputs(module(**feeds))["logits"]
    return logits[feeds["attention_mask"].bool()] if logits.ndim == 3 else logits


def _some(draw: st.DrawFn, total: int, count: int, pinned: tuple[int, ...] = ()) -> tuple[int, ...]:
    order = draw(st.permutations(range(total))) if total <= 16 else _shuffled(draw, total)
    chosen = [*pinned, *(i for i in order if i not in pinned)]
    return tuple(sorted(chosen[:count]))


def _shuffled(draw: st.DrawFn, total: int) -> list[int]:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9999)))
    return torch.randperm(total, generator=generator).tolist()


@st.composite
def _configs(draw: st.DrawFn, family: str) -> Any:
    follows = FAMILIES[family].heads_follow_width
    per_group = 1 if follows or family in _IMAGES else draw(st.integers(1, 3))
    heads = draw(st.integers(2, 4)) * per_group
    head_dim = draw(st.sampled_from((4, 8)))
    hidden = heads * head_dim if follows else heads * draw(st.integers(3, 10))
    sizes: dict[str, Any] = {
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "hidden_size": hidden,
        "intermediate_size": draw(st.integers(2, 24)),
    }
    if not follows:
        sizes["head_dim"] = head_dim
    flag = st.booleans()
    if family in _IMAGES:
        return _CONFIGS[family](
            **sizes,
            architectures=[f"{'ViT' if family == 'vit' else 'DeiT'}ForImageClassification"],
            image_size=8,
            patch_size=4,
            num_labels=3,
            qkv_bias=draw(flag),
        )
    sizes |= _TOKENS | {"max_position_embeddings": 32, "num_labels": 3}
    if family == "gpt2":
        return transformers.GPT2Config(
            **_TOKENS,
            n_positions=32,
            n_embd=hidden,
            n_head=heads,
            n_layer=sizes["num_hidden_layers"],
            n_inner=draw(st.sampled_from((None, sizes["intermediate_size"]))),
            tie_word_embeddings=draw(flag),
        )
    if family == "distilbert":
        return transformers.DistilBertConfig(
            vocab_size=48,
            dim=hidden,
            n_heads=heads,
            n_layers=sizes["num_hidden_layers"],
            hidden_dim=sizes["intermediate_size"],
            pad_token_id=0,
            num_labels=3,
        )
    if family == "electra":
        sizes["embedding_size"] = draw(st.sampled_from((6, hidden)))
    if family == "modernbert":
        sizes |= {
            **{name: draw(flag) for name in ("attention_bias", "mlp_bias", "norm_bias")},
            "local_attention": 4,
            "cls_token_id": 2,
            "sep_token_id": 3,
        }
    if not follows:
        sizes["num_key_value_heads"] = heads // per_group
        sizes["tie_word_embeddings"] = draw(flag)
        sizes["attention_bias"] = draw(flag)
    if family == "llama":
        sizes["mlp_bias"] = draw(flag)
    if family == "smollm3":
        sizes["no_rope_layers"] = [1, 0, 1][: sizes["num_hidden_layers"]]
    if family in ("gemma2", "gemma3_text"):
        sizes["sliding_window"] = 4
    return _CONFIGS[family](**sizes)


def _auto(family: str) -> Any:
    if family in _IMAGES:
        return transformers.AutoModelForImageClassification
    if FAMILIES[family].heads_follow_width and family != "gpt2":
        return transformers.AutoModelForSequenceClassification
    return transformers.AutoModelForCausalLM
