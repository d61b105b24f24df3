"""Gates: factors of one where units could be switched off; the loss's slope by them is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from exporter.compress.units import Point, Unit

Gates = dict[Point, Tensor]  # of each part: one gate a feature, or one for the whole of it


@contextmanager
def gated(module: nn.Module, units: Sequence[Unit]) -> Iterator[Gates]:
    """Multiply what the units' points carry by gates of one meanwhile; they are made as it runs."""
    gates: Gates = {}

    def gate_of(place: Point, value: Tensor, features: int) -> Tensor:
        gates[place] = torch.ones(features, dtype=value.dtype, requires_grad=True)
        return gates[place]

    def entering(place: Point) -> Callable[..., Any]:
        def scale(part: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (args[0] * gate_of(place, args[0], args[0].shape[-1]), *args[1:])

        return scale

    def leaving(place: Point) -> Callable[..., Any]:
        def scale(part: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
            gate = gate_of(place, out, out.shape[1])
            return out * gate.view(-1, *[1] * (out.dim() - 2))

        return scale

    def around(place: Point) -> Callable[..., Any]:
        def scale(part: nn.Module, args: Any, kwargs: dict[str, Any], out: Any) -> Any:
            before = args[0] if args else kwargs["hidden_states"]
            after = out if isinstance(out, Tensor) else out[0]
            passed = before + gate_of(place, after, 1) * (after - before)
            return passed if isinstance(out, Tensor) else (passed, *out[1:])

        return scale

    with ExitStack() as hooks:
        for place in dict.fromkeys(place_of(unit) for unit in units):
            part = module.get_submodule(place.module)
            if place.side == "input":
                handle = part.register_forward_pre_hook(entering(place))
            elif place.side == "output":
                handle = part.register_forward_hook(leaving(place))
            else:
                handle = part.register_forward_hook(around(place), with_kwargs=True)
            hooks.callback(handle.remove)
        yield gates


def place_of(unit: Unit) -> Point:
    """Where a unit's gate stands: its point without the features."""
    assert unit.point is not None
    return Point(unit.point.module, unit.point.side)


@dataclass(frozen=True)
class Row:
    """The units of one kind that are gated at one place.

    Attributes:
        name: of the sum that holds their effects, (units,).
        feature, unit: which gates belong to which unit, both (pairs,).
    """

    name: str
    place: Point
    units: tuple[Unit, ...]
    feature: Tensor
    unit: Tensor


def rows_of(units: Sequence[Unit]) -> list[Row]:
    """The units by kind and place, in the order in which the places come."""
    grouped: dict[tuple[str, Point], list[Unit]] = {}
    for one in units:
        grouped.setdefault((one.kind, place_of(one)), []).append(one)
    rows = []
    for (kind, place), members in grouped.items():
        pairs = [
            (feature, i)
            for i, one in enumerate(members)
            for feature in (one.point.index if one.point and one.point.index else (0,))
        ]
        feature, unit = torch.tensor(pairs).T
        name = f"gate {kind} {place.side} {place.module}"
        rows.append(Row(name, place, tuple(members), feature, unit))
    return rows
