"""Soundness: weights and activations are numbers, and there is enough data, before hours go by."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from exporter.errors import DataError, ModelError, TooFewPositions


def check_weights(module: nn.Module) -> None:
    """Refuse a module whose parameters are not all numbers.

    Raises:
        ModelError: a parameter holds NaN or infinity; it is named.
    """
    for name, value in module.named_parameters():
        broken = int((~torch.isfinite(value)).sum())
        if broken:
            raise ModelError(
                name,
                "must hold finite weights",
                got=f"{broken:,} of {value.numel():,} NaN or infinite",
                remedy="load a checkpoint that is not damaged.",
            )


def check_outputs(module: nn.Module, outputs: dict[str, Tensor], run: Callable[[], object]) -> None:
    """Refuse answers that are not numbers, and say where they first went wrong.

    Infinity inside, as masks hold it, is no harm: the module is only run again, and looked into,
    where its answer is broken.

    Args:
        run: runs the module on the same inputs again.

    Raises:
        ModelError: an output holds NaN or infinity; the first part that gave it out is named.
    """
    broken = [n for n, v in outputs.items() if v.is_floating_point() and not v.isfinite().all()]
    if not broken:
        return
    first: list[str] = []

    def looking(name: str) -> Callable[..., None]:
        def see(part: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            values = out if isinstance(out, tuple | list) else (out,)
            if not first and any(
                isinstance(v, Tensor) and v.is_floating_point() and not v.isfinite().all()
                for v in values
            ):
                first.append(name)

        return see

    with ExitStack() as hooks:
        for name, part in module.named_modules():
            if not any(True for _ in part.children()):
                hooks.callback(part.register_forward_hook(looking(name)).remove)
        run()
    raise ModelError(
        first[0] if first else f"output {broken[0]}",
        "must give out finite activations on the training data",
        got="NaN or infinity",
        remedy="look at the inputs and at the weights of that layer.",
    )


def check_seen(path: str, positions: int) -> None:
    """Refuse to score a layer that the data never reached.

    Raises:
        DataError: there were no positions.
    """
    if not positions:
        raise DataError(
            path,
            "must be reached by the training examples to be scored by its activations",
            got="0 positions",
            remedy="give data that uses it, or set criterion = 'magnitude'.",
        )


def check_positions(path: str, positions: int, features: int, damping: float | None) -> None:
    """Refuse a Hessian of fewer positions than it has rows, unless a damping was asked for.

    Raises:
        TooFewPositions: it would be singular, and its inverse made of the damping alone.
    """
    if positions < features and damping is None:
        raise TooFewPositions(
            f"{path}: Hessian",
            f"needs at least as many positions as input features, {features:,}",
            got=f"{positions:,}",
            remedy="give more or longer examples, or a damping such as 0.1, or take wanda.",
        )
