"""Units: what can go as one piece, from a single weight to a whole layer, as slices of weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from exporter.compress.families import Projection
from exporter.compress.heads import Heads, heads_of
from exporter.compress.matrices import prunable_weights, rows_axis
from exporter.compress.structure import Structure

Kind = Literal["weight", "row", "column", "ffn", "head", "group", "hidden", "channel", "layer"]
KINDS: tuple[Kind, ...] = (
    "layer",
    "head",
    "group",
    "ffn",
    "hidden",
    "channel",
    "row",
    "column",
    "weight",
)
BLOCK = 32  # rows or columns that go together: what kernels and blocks of 4-bit weights ask for


@dataclass(frozen=True)
class Slice:
    """Some rows, columns or single entries of a parameter.

    Attributes:
        parameter: its name.
        axis: the axis that `index` runs along; None: `index` holds positions in the flat tensor.
    """

    parameter: str
    axis: int | None
    index: tuple[int, ...]


@dataclass(frozen=True)
class Point:
    """Where activations are switched off to make a unit have no effect.

    Attributes:
        module: path of a part of the module.
        side: `input`: features of what the part takes in; `output`: of what it gives out;
            `through`: the whole part, which then passes its input on.
        index: the features (channels of a convolution); empty for `through`.
    """

    module: str
    side: Literal["input", "output", "through"]
    index: tuple[int, ...] = ()


@dataclass(frozen=True)
class Unit:
    """Coupled weights that go together.

    Attributes:
        name: unique within a module, such as `layer 3 head 2`.
        layer: index of its layer, None where it is in none or in all.
        slices: all weights that go with it; a weight that several slices name counts once.
        point: where it is switched off; None: by setting its slices to zero.
    """

    kind: Kind
    name: str
    layer: int | None
    slices: tuple[Slice, ...]
    point: Point | None = None


def structure_units(module: nn.Module, structure: Structure, kind: Kind) -> list[Unit]:
    """Layers, heads, KV groups or feed-forward units of a module, layer after layer."""
    names = canonical_names(module)
    found: list[Unit] = []
    heads = heads_of(structure)
    for layer, block in enumerate(structure.blocks(module)):
        path = f"{structure.stack}.{layer}"
        build = _Builder(block, path, names, layer)
        if kind == "layer":
            found.append(build.whole())
        elif kind == "ffn":
            family = structure.family
            for one in range(structure.ffn):
                rows = [(p, structure.rows(p, units=[one], groups=[])) for p in family.ffn_in]
                found.append(build.unit(kind, "unit", one, rows, family.ffn_out, (one,)))
        else:
            found += _attention(build, heads, kind)
    return found


def _attention(build: _Builder, heads: Heads, kind: Kind) -> Iterator[Unit]:
    for one in range(heads.groups if kind == "group" else heads.heads):
        first = one * heads.per_group
        members = [one] if kind == "head" else list(range(first, first + heads.per_group))
        # The keys and values of a head that shares them stay when it goes.
        groups = [one] if kind == "group" or heads.per_group == 1 else []
        rows = [(p, heads.rows(p, members, groups)) for p in heads.into]
        yield build.unit(kind, kind, one, rows, heads.out, heads.queries(members))


@dataclass(frozen=True)
class _Builder:
    """Makes the units of one layer."""

    block: nn.Module
    path: str
    names: Mapping[str, str]
    layer: int

    def whole(self) -> Unit:
        slices = tuple(
            Slice(self.names[f"{self.path}.{name}"], 0, tuple(range(value.shape[0])))
            for name, value in self.block.named_parameters()
        )
        point = Point(self.path, "through")
        return Unit("layer", f"layer {self.layer}", self.layer, slices, point)

    def unit(
        self,
        kind: Kind,
        word: str,
        one: int,
        into: Sequence[tuple[Projection, Sequence[int]]],
        out: str,
        features: tuple[int, ...],
    ) -> Unit:
        slices = []
        for projection, rows in into:
            if not rows:
                continue
            part = self.block.get_submodule(projection.name)
            name = f"{self.path}.{projection.name}"
            slices.append(Slice(self.names[f"{name}.weight"], rows_axis(part), tuple(rows)))
            if isinstance(getattr(part, "bias", None), Tensor):
                slices.append(Slice(self.names[f"{name}.bias"], 0, tuple(rows)))
        leaving = self.block.get_submodule(out)
        name = self.names[f"{self.path}.{out}.weight"]
        slices.append(Slice(name, 1 - rows_axis(leaving), features))
        point = Point(f"{self.path}.{out}", "input", features)
        return Unit(kind, f"layer {self.layer} {word} {one}", self.layer, tuple(slices), point)


def units_along(
    module: nn.Module, kind: Kind, axes: Mapping[str, tuple[int, ...]], count: int
) -> list[Unit]:
    """`count` units that run along axes of many parameters, such as hidden channels.

    Args:
        axes: parameter name -> axes whose index is the unit. A square matrix that both reads and
            writes the residual stream has two. An axis that is a multiple of `count` long holds
            as many entries of each unit next to one another.
    """
    names = canonical_names(module)
    parameters = dict(module.named_parameters())
    shared = {names[name]: along for name, along in axes.items()}
    found = []
    for one in range(count):
        slices = []
        for name, along in shared.items():
            for axis in along:
                width = parameters[name].shape[axis] // count
                slices.append(Slice(name, axis, tuple(range(one * width, (one + 1) * width))))
        found.append(Unit(kind, f"{kind} {one}", None, tuple(slices)))
    return found


def channel_units(module: nn.Module) -> list[Unit]:
    """Output channels of each convolution alone; what is coupled to them is not part of it."""
    names = canonical_names(module)
    found = []
    for path, part in module.named_modules():
        if not isinstance(part, nn.Conv1d | nn.Conv2d):
            continue
        for one in range(part.out_channels):
            slices = [Slice(names[f"{path}.weight"], 0, (one,))]
            if part.bias is not None:
                slices.append(Slice(names[f"{path}.bias"], 0, (one,)))
            point = Point(path, "output", (one,))
            found.append(Unit("channel", f"{path} channel {one}", None, tuple(slices), point))
    return found


def block_units(module: nn.Module, kind: Literal["row", "column"], size: int = BLOCK) -> list[Unit]:
    """Blocks of neighbouring rows or columns of each matrix that may be pruned."""
    found = []
    for name, part in prunable_weights(module).items():
        axis = rows_axis(part) if kind == "row" else 1 - rows_axis(part)
        length = part.get_parameter("weight").shape[axis]
        for first in range(0, length, size):
            index = tuple(range(first, min(first + size, length)))
            title = f"{name} {kind}s {first}-{index[-1]}"
            found.append(Unit(kind, title, None, (Slice(name, axis, index),)))
    return found


def weight_units(module: nn.Module, count: int) -> list[Unit]:
    """`count` single weights, evenly spread over all matrices that may be pruned."""
    parts = {n: part.get_parameter("weight") for n, part in prunable_weights(module).items()}
    total = sum(weight.numel() for weight in parts.values())
    found = []
    start = 0
    wanted = [i * total // count for i in range(min(count, total))]
    for name, weight in parts.items():
        for position in wanted:
            if start <= position < start + weight.numel():
                at = position - start
                where = ", ".join(
                    str(int(i)) for i in torch.unravel_index(torch.tensor(at), weight.shape)
                )
                title = f"{name}[{where}]"
                found.append(Unit("weight", title, None, (Slice(name, None, (at,)),)))
        start += weight.numel()
    return found


def canonical_names(module: nn.Module) -> dict[str, str]:
    """Every name of a parameter -> the first one: a tied weight has one name."""
    first: dict[int, str] = {}
    names = {}
    for name, value in module.named_parameters(remove_duplicate=False):
        names[name] = first.setdefault(id(value), name)
    return names


def total(values: Mapping[str, Tensor], slices: Iterable[Slice]) -> float:
    """Sum of per-weight values over slices; a weight that several of them name counts once."""
    by_name: dict[str, list[Slice]] = {}
    for one in dict.fromkeys(slices):
        by_name.setdefault(one.parameter, []).append(one)
    found = 0.0
    for name, parts in by_name.items():
        value = values[name]
        if len(parts) == 1:
            found += float(taken(value, parts[0]).sum())
        else:
            found += float(value[covered(value, parts)].sum())
    return found


def taken(value: Tensor, part: Slice) -> Tensor:
    """The entries of a slice."""
    index = torch.tensor(part.index)
    return value.reshape(-1)[index] if part.axis is None else value.index_select(part.axis, index)


def covered(value: Tensor, parts: Iterable[Slice]) -> Tensor:
    """Which entries of a parameter slices name, as a bool mask of its shape."""
    mask = torch.zeros(value.shape, dtype=torch.bool)
    for part in parts:
        index = torch.tensor(part.index)
        if part.axis is None:
            mask.view(-1)[index] = True
        else:
            mask.index_fill_(part.axis, index, True)
    return mask


def spread_over(units: Sequence[Unit], count: int) -> list[int]:
    """Indices of at most `count` units, evenly apart."""
    number = min(count, len(units))
    return [i * len(units) // number for i in range(number)]
