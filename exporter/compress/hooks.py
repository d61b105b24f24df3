"""Hooks: what shapes a student while it trains, such as a rising sparsity or rounded weights."""

from __future__ import annotations

from typing import Any

from torch import nn


class Hook:
    """Does nothing; one that shapes a student overrides what it needs.

    Steps count from 1 to `steps`. What a hook does is a function of its arguments, its `identity`
    and its `state`: a run that was stopped goes on bit for bit.

    Attributes:
        identity: what it is and how it is set: a checkpoint of another is not gone on from.
    """

    identity = ""

    def before_step(self, step: int, steps: int, module: nn.Module) -> None:
        """Ahead of a step's forward pass."""

    def before_update(self, module: nn.Module) -> None:
        """When gradients are there, ahead of clipping and of the optimizer."""

    def after_step(self, module: nn.Module) -> None:
        """When the optimizer has changed the weights."""

    def settled(self, step: int, steps: int) -> bool:
        """False while what training would yield is not yet what was asked for.

        Until then a look at development data neither is the best nor counts against patience.
        """
        return True

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold beside the module: tensors, numbers, texts."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` told."""
