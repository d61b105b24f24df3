"""Families: where each architecture keeps its layers, feed-forward units and attention heads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Unit = Literal["ffn", "query", "value"]


@dataclass(frozen=True)
class Projection:
    """A linear layer into units.

    Attributes:
        name: path below the layer.
        segments: what its output rows are, in order; more than one where a family fuses
            several projections (gate and up; query, key and value).
    """

    name: str
    segments: tuple[Unit, ...]


@dataclass(frozen=True)
class Family:
    """Where an architecture keeps its layers, feed-forward units and attention heads.

    Attributes:
        stack: path of the list of layers below the base model.
        ffn_in, ffn_out: the projections into the feed-forward units and out of them.
        ffn_field: the config's name for the number of units.
        attention_in, attention_out: the same for heads.
        heads_follow_width: the config has no head size of its own: it cannot say that a head is
            missing, unless the hidden width shrinks with the heads.
        scaled_embedding: embeddings are multiplied by the root of the hidden width.
        first_layer_stays: the first layer is built differently from the others.
    """

    stack: str
    ffn_in: tuple[Projection, ...]
    ffn_out: str
    attention_in: tuple[Projection, ...]
    attention_out: str
    ffn_field: str = "intermediate_size"
    heads_follow_width: bool = False
    scaled_embedding: bool = False
    first_layer_stays: bool = False


_BERT = Family(
    "encoder.layer",
    (Projection("intermediate.dense", ("ffn",)),),
    "output.dense",
    (
        Projection("attention.self.query", ("query",)),
        Projection("attention.self.key", ("value",)),
        Projection("attention.self.value", ("value",)),
    ),
    "attention.output.dense",
    heads_follow_width=True,
)
_LLAMA = Family(
    "layers",
    (Projection("mlp.gate_proj", ("ffn",)), Projection("mlp.up_proj", ("ffn",))),
    "mlp.down_proj",
    (
        Projection("self_attn.q_proj", ("query",)),
        Projection("self_attn.k_proj", ("value",)),
        Projection("self_attn.v_proj", ("value",)),
    ),
    "self_attn.o_proj",
)
_GEMMA = replace(_LLAMA, scaled_embedding=True)
_VIT = Family(
    "layers",
    (Projection("mlp.fc1", ("ffn",)),),
    "mlp.fc2",
    (
        Projection("attention.q_proj", ("query",)),
        Projection("attention.k_proj", ("value",)),
        Projection("attention.v_proj", ("value",)),
    ),
    "attention.o_proj",
)

# By `model_type`. To add a family, add its line and its name to the tests' list.
FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "distilbert": Family(
        "transformer.layer",
        (Projection("ffn.lin1", ("ffn",)),),
        "ffn.lin2",
        (
            Projection("attention.q_lin", ("query",)),
            Projection("attention.k_lin", ("value",)),
            Projection("attention.v_lin", ("value",)),
        ),
        "attention.out_lin",
        ffn_field="hidden_dim",
        heads_follow_width=True,
    ),
    "modernbert": Family(
        "layers",
        (Projection("mlp.Wi", ("ffn", "ffn")),),
        "mlp.Wo",
        (Projection("attn.Wqkv", ("query", "value", "value")),),
        "attn.Wo",
        heads_follow_width=True,
        first_layer_stays=True,
    ),
    "gpt2": Family(
        "h",
        (Projection("mlp.c_fc", ("ffn",)),),
        "mlp.c_proj",
        (Projection("attn.c_attn", ("query", "value", "value")),),
        "attn.c_proj",
        ffn_field="n_inner",
        heads_follow_width=True,
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "smollm3": _LLAMA,
    "gemma": _GEMMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "phi3": Family(
        "layers",
        (Projection("mlp.gate_up_proj", ("ffn", "ffn")),),
        "mlp.down_proj",
        (Projection("self_attn.qkv_proj", ("query", "value", "value")),),
        "self_attn.o_proj",
    ),
    "vit": _VIT,
    "deit": _VIT,
}
