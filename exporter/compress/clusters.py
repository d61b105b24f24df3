"""Clusters: weights that share a value go on sharing it while they learn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from exporter.compress.hooks import Hook
from exporter.compress.importance import prunable_weights

LARGEST = 256  # values of a matrix that count as clusters


class KeepClusters(Hook):
    """Moves a cluster as one: its gradient is the mean of its weights', its value stays shared.

    A matrix is clustered when it has at most `LARGEST` different values and several weights for
    each; zero stays zero (Han et al., arXiv:1510.00149).
    """

    def __init__(self, module: nn.Module) -> None:
        self.identity = f"clusters {LARGEST}"
        self._labels: dict[str, Tensor] = {}
        self._zero: dict[str, int | None] = {}
        for name, part in prunable_weights(module).items():
            weight = part.weight
            assert isinstance(weight, Tensor)
            values, labels = torch.unique(weight.detach(), return_inverse=True)
            if len(values) <= min(LARGEST, weight.numel() // 2):
                self._labels[name] = labels
                zero = (values == 0).nonzero().flatten()
                self._zero[name] = int(zero[0]) if len(zero) else None

    @property
    def names(self) -> tuple[str, ...]:
        """Parameters that are clustered."""
        return tuple(self._labels)

    def before_update(self, module: nn.Module) -> None:
        """Give every weight of a cluster the mean gradient."""
        parameters = dict(module.named_parameters(remove_duplicate=False))
        for name, labels in self._labels.items():
            gradient = parameters[name].grad
            if gradient is not None:
                gradient.copy_(self._mean(name, labels, gradient))

    def after_step(self, module: nn.Module) -> None:
        """Give every weight of a cluster the mean value: not even rounding parts them."""
        parameters = dict(module.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for name, labels in self._labels.items():
                parameters[name].copy_(self._mean(name, labels, parameters[name]))

    def state(self) -> dict[str, Any]:
        """Which cluster each weight is in: two may meet, and part again."""
        return {"labels": dict(self._labels), "zero": dict(self._zero)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` told."""
        self._labels, self._zero = dict(state["labels"]), dict(state["zero"])

    def _mean(self, name: str, labels: Tensor, values: Tensor) -> Tensor:
        """`values` with each cluster's mean in the place of its members."""
        flat = labels.flatten()
        count = int(flat.max()) + 1
        sums = torch.zeros(count, dtype=torch.float64).scatter_add_(
            0, flat, values.detach().double().flatten()
        )
        means = sums / torch.bincount(flat, minlength=count)
        zero = self._zero[name]
        if zero is not None:
            means[zero] = 0.0
        return means.to(values.dtype)[labels]
