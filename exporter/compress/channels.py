"""Channels: which of a convolutional network go together, and how they go.

torch-pruning's dependency graph (Fang et al., DepGraph, arXiv:2301.12900) tells which rows and
columns of which convolutions, norms and linear layers carry the same channel: residual sums and
depthwise convolutions couple many.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Coupled:
    """Channels that only go together.

    Attributes:
        count: how many there are.
        axes: (name in the state, axis) of everything that runs over them.
        writers: those that put them out: with zeros there, the channel is silent.
    """

    count: int
    axes: tuple[tuple[str, int], ...]
    writers: tuple[tuple[str, int], ...]


def coupled_channels(module: nn.Module, feeds: Mapping[str, Tensor]) -> list[Coupled]:
    """All sets of coupled channels of a convolutional network, in an order of their own.

    Raises:
        ValueError: a set is coupled in a way that is not understood (grouped convolutions).
    """
    import torch_pruning

    traced = copy.deepcopy(module).eval()
    for parameter in traced.parameters():
        parameter.requires_grad_()  # the graph is read off autograd's
    graph = torch_pruning.DependencyGraph()
    with torch.enable_grad():
        graph.build_dependency(traced, dict(feeds), verbose=False)
    names = {part: name for name, part in traced.named_modules()}
    found = []
    for group in graph.get_all_groups():
        axes: set[tuple[str, int]] = set()
        writers: set[tuple[str, int]] = set()
        count = len(group[0].idxs)
        for dependency, index in group:
            part = dependency.target.module
            if part not in names:
                continue  # an operation without weights
            if list(index) != list(range(count)):
                raise ValueError(f"channels enter {names[part]} in another order than they leave")
            out = bool(graph.is_out_channel_pruning_fn(dependency.handler))
            ran, wrote = _axes(part, out, names[part])
            axes |= ran
            writers |= wrote
        found.append(Coupled(count, tuple(sorted(axes)), tuple(sorted(writers))))
    return sorted(found, key=lambda one: one.axes)


def _axes(part: nn.Module, out: bool, name: str) -> tuple[set[tuple[str, int]], ...]:
    """(all, written by) axes of a part's state that run over what it gives out, or takes in."""
    own = {f"{name}.{key}" for key, value in part.state_dict().items() if value.ndim}
    if isinstance(part, nn.BatchNorm2d):
        return {(key, 0) for key in own}, {(f"{name}.weight", 0), (f"{name}.bias", 0)}
    if isinstance(part, nn.Conv2d) and part.groups > 1:
        if not part.groups == part.in_channels == part.out_channels:
            raise ValueError(f"{name} is a convolution in {part.groups} groups")
        out = True  # a depthwise convolution takes in what it gives out
    if not isinstance(part, nn.Conv2d | nn.Linear):
        raise ValueError(f"{name} is a {type(part).__name__}")
    if out:
        return {(key, 0) for key in own}, {(key, 0) for key in own}
    return {(f"{name}.weight", 1)}, set()


def remove_channels(
    module: nn.Module,
    smaller: nn.Module,
    groups: Sequence[Coupled],
    kept: Sequence[Sequence[int]],
) -> nn.Module:
    """`smaller`, an empty module of the same class, with the weights of the channels that stay."""
    state = dict(module.state_dict())
    for group, stays in zip(groups, kept, strict=True):
        if len(stays) < group.count:
            for name, axis in group.axes:
                index = torch.tensor(list(stays), device=state[name].device)
                state[name] = state[name].index_select(axis, index)
    smaller.load_state_dict(state, strict=True)
    return smaller.train(module.training)


def mask_channels(
    module: nn.Module, groups: Sequence[Coupled], kept: Sequence[Sequence[int]]
) -> nn.Module:
    """A copy of `module`, full size, in which the channels that go are silent."""
    masked = copy.deepcopy(module)
    state = masked.state_dict()
    for group, stays in zip(groups, kept, strict=True):
        gone = torch.tensor(sorted(set(range(group.count)) - set(stays)), dtype=torch.long)
        for name, axis in group.writers:
            state[name].index_fill_(axis, gone.to(state[name].device), 0)
    return masked


def widths_in(
    smaller: nn.Module, groups: Sequence[Coupled], feeds: Mapping[str, Tensor]
) -> list[int]:
    """How many channels of each set the smaller module has.

    Raises:
        ValueError: it couples its channels differently. Where two widths become equal, ResNets lose
            a shortcut's convolution and MobileNets gain a residual sum.
    """
    found = coupled_channels(smaller, feeds)
    if [group.axes for group in found] != [group.axes for group in groups]:
        raise ValueError("the narrower model couples its channels differently")
    return [group.count for group in found]
