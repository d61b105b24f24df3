"""Heads: where attention keeps them, whether or not a config can say that one is missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from exporter.compress.families import Projection
from exporter.compress.structure import Structure, matrix_of

# Families whose heads cannot go alone have no `attention_in`; what a head is worth can be asked
# of them all the same.
_BERT = (
    tuple(Projection(f"attention.self.{n}", ("query",)) for n in ("query", "key", "value")),
    "attention.output.dense",
)
_ELSEWHERE: dict[str, tuple[tuple[Projection, ...], str]] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), _BERT),
    "distilbert": (
        tuple(Projection(f"attention.{n}_lin", ("query",)) for n in "qkv"),
        "attention.out_lin",
    ),
    "modernbert": ((Projection("attn.Wqkv", ("query", "value", "value")),), "attn.Wo"),
    "gpt2": ((Projection("attn.c_attn", ("query", "value", "value")),), "attn.c_proj"),
}


@dataclass(frozen=True)
class Heads:
    """The attention heads of each layer.

    Attributes:
        into: projections into queries, keys and values.
        out: the projection out of all heads.
        heads, groups: query heads and KV groups in each layer.
        width: features of one head.
    """

    into: tuple[Projection, ...]
    out: str
    heads: int
    groups: int
    width: int

    @property
    def per_group(self) -> int:
        """Query heads that share a group."""
        return self.heads // self.groups

    def queries(self, heads: list[int]) -> tuple[int, ...]:
        """Features of the given query heads, as they enter the output projection."""
        return tuple(h * self.width + i for h in heads for i in range(self.width))

    def rows(self, projection: Projection, heads: list[int], groups: list[int]) -> tuple[int, ...]:
        """Output rows of a projection that belong to the given query heads and KV groups."""
        rows: list[int] = []
        offset = 0
        for segment in projection.segments:
            chosen, count = (heads, self.heads) if segment == "query" else (groups, self.groups)
            rows += [offset + one * self.width + i for one in chosen for i in range(self.width)]
            offset += count * self.width
        return tuple(rows)


def heads_of(module: nn.Module, structure: Structure) -> Heads | None:
    """The heads of `module`; None where it is not known here how they lie."""
    family = structure.family
    into, out = family.attention_in, family.attention_out
    if not into:
        into, out = _ELSEWHERE.get(structure.model_type, ((), ""))
    config: Any = module.config
    heads = int(getattr(config, "num_attention_heads", 0) or 0)
    if not into or not heads:
        return None
    try:
        features = matrix_of(structure.blocks(module)[0], out).shape[1]
    except AttributeError:
        return None
    groups = int(getattr(config, "num_key_value_heads", None) or heads)
    return Heads(into, out, heads, groups, features // heads)
