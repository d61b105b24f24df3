"""Heads: single ones, of which several may share keys and values."""

from __future__ import annotations

from dataclasses import dataclass

from exporter.compress.families import Projection
from exporter.compress.structure import Structure


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


def heads_of(structure: Structure) -> Heads:
    """The heads of each layer."""
    family, groups = structure.family, structure.groups
    heads = groups * structure.heads_per_group
    return Heads(family.attention_in, family.attention_out, heads, groups, structure.head_dim)
