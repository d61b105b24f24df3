"""Masking: one unit without effect for a while, in the module itself, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from exporter.compress.units import Unit, covered


@contextmanager
def masked(module: nn.Module, unit: Unit) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """The module with a unit switched off meanwhile; no copy of the module is made.

    A unit with a point is switched off in the activations there; any other by setting its slices
    to zero, and their values come back bit by bit. Yields what switches it on again for a moment.
    """
    mask = _pointed if unit.point is not None else _zeroed
    with ExitStack() as off:
        off.enter_context(mask(module, unit))

        @contextmanager
        def back_on() -> Iterator[None]:
            off.close()
            try:
                yield
            finally:
                off.enter_context(mask(module, unit))

        yield back_on


@contextmanager
def _pointed(module: nn.Module, unit: Unit) -> Iterator[None]:
    assert unit.point is not None
    part = module.get_submodule(unit.point.module)
    index = torch.tensor(unit.point.index, dtype=torch.long)
    if unit.point.side == "input":
        handle = part.register_forward_pre_hook(_without(index))
    elif unit.point.side == "output":
        handle = part.register_forward_hook(_silenced(index))
    else:
        handle = part.register_forward_hook(_passing, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _zeroed(module: nn.Module, unit: Unit) -> Iterator[None]:
    parameters = dict(module.named_parameters())
    before: dict[str, tuple[Tensor, Tensor]] = {}
    with torch.no_grad():
        for name in dict.fromkeys(one.parameter for one in unit.slices):
            value = parameters[name]
            mask = covered(value, [one for one in unit.slices if one.parameter == name])
            before[name] = (mask, value[mask].clone())
            value[mask] = 0.0
    try:
        yield
    finally:
        with torch.no_grad():
            for name, (mask, values) in before.items():
                parameters[name][mask] = values


def _without(index: Tensor) -> Any:
    def enter(part: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0].index_fill(-1, index, 0.0), *args[1:])

    return enter


def _silenced(index: Tensor) -> Any:
    def leave(part: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        return out.index_fill(1, index, 0.0)

    return leave


def _passing(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    entered = args[0] if args else kwargs["hidden_states"]
    return entered if isinstance(out, Tensor) else (entered, *out[1:])
