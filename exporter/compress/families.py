"""Families: where each architecture keeps its layers, feed-forward units and attention heads."""

from __future__ import annotations

from dataclasses import dataclass
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
        attention_in, attention_out: the same for heads; empty where the head size follows from
            the hidden width, so that a config cannot say that a head is missing.
        first_layer_stays: the first layer is built differently from the others.
    """

    stack: str
    ffn_in: tuple[Projection, ...]
    ffn_out: str
    ffn_field: str = "intermediate_size"
    attention_in: tuple[Projection, ...] = ()
    attention_out: str = ""
    first_layer_stays: bool = False


_BERT = Family("encoder.layer", (Projection("intermediate.dense", ("ffn",)),), "output.dense")
_LLAMA = Family(
    "layers",
    (Projection("mlp.gate_proj", ("ffn",)), Projection("mlp.up_proj", ("ffn",))),
    "mlp.down_proj",
    attention_in=(
        Projection("self_attn.q_proj", ("query",)),
        Projection("self_attn.k_proj", ("value",)),
        Projection("self_attn.v_proj", ("value",)),
    ),
    attention_out="self_attn.o_proj",
)
_VIT = Family(
    "layers",
    (Projection("mlp.fc1", ("ffn",)),),
    "mlp.fc2",
    attention_in=(
        Projection("attention.q_proj", ("query",)),
        Projection("attention.k_proj", ("value",)),
        Projection("attention.v_proj", ("value",)),
    ),
    attention_out="attention.o_proj",
)

# By `model_type`. To add a family, add its line and its name to the tests' list.
FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "distilbert": Family(
        "transformer.layer", (Projection("ffn.lin1", ("ffn",)),), "ffn.lin2", "hidden_dim"
    ),
    "modernbert": Family(
        "layers", (Projection("mlp.Wi", ("ffn", "ffn")),), "mlp.Wo", first_layer_stays=True
    ),
    "gpt2": Family("h", (Projection("mlp.c_fc", ("ffn",)),), "mlp.c_proj", "n_inner"),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "smollm3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "phi3": Family(
        "layers",
        (Projection("mlp.gate_up_proj", ("ffn", "ffn")),),
        "mlp.down_proj",
        attention_in=(Projection("self_attn.qkv_proj", ("query", "value", "value")),),
        attention_out="self_attn.o_proj",
    ),
    "vit": _VIT,
    "deit": _VIT,
}
