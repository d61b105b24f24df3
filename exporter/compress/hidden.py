"""Hidden width: which parameters run over the residual stream, and how its channels go.

Every layer reads the same residual stream and adds to it, so a channel goes from the whole
module at once: from embeddings, norms, every projection that reads or writes the stream, position
tables, poolers and heads (Minitron, Muralidharan et al., arXiv:2407.14679).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from exporter.compress.activations import Energy, watch
from exporter.compress.masking import masked
from exporter.compress.structure import (
    Structure,
    accepts,
    build,
    is_transposed,
    matrix_of,
    shrunk_config,
)
from exporter.compress.units import Slice, Unit, canonical_names
from exporter.models.examples import Examples, Train
from exporter.models.tasks import SILENT
from exporter.progress import Progress


def hidden_axes(module: nn.Module, structure: Structure) -> dict[str, tuple[int, ...]]:
    """Parameter name -> the axes that run over the residual stream.

    Asked of the architecture itself: the axes that shrink when its config's hidden width does,
    but for those of the heads. A shared parameter has all of its names. Empty where the config
    can say no other width.
    """
    found = _narrower(structure)
    if found is None:
        return {}
    groups, hidden = found
    config = shrunk_config(
        structure,
        layers=range(structure.layers),
        ffn=structure.ffn,
        groups=groups,
        hidden=hidden,
    )
    with torch.device("meta"):
        smaller = build(module, config)
    shapes = {n: p.shape for n, p in smaller.named_parameters(remove_duplicate=False)}
    heads = _head_axes(module, structure) if structure.family.heads_follow_width else set()
    axes: dict[str, tuple[int, ...]] = {}
    for name, value in module.named_parameters(remove_duplicate=False):
        along = tuple(
            axis
            for axis, (before, after) in enumerate(zip(value.shape, shapes[name], strict=True))
            if before != after and (name, axis) not in heads
        )
        if along:
            axes[name] = along
    return axes


def score_hidden(
    module: nn.Module,
    structure: Structure,
    examples: Examples[Train] | None,
    *,
    batch_size: int = 8,
    progress: Progress = SILENT,
) -> NDArray[np.float64]:
    """Importance of each channel of the residual stream, (hidden,), the largest 1.

    What a channel carries into each matrix that reads the stream: its mean square times the
    square of the columns that it meets, as a share of all channels', averaged over the matrices.

    Raises:
        DataError: there are no training examples.
    """
    axes = hidden_axes(module, structure)
    readers = {}
    for name, part in module.named_modules():
        turned = is_transposed(part)
        linear = isinstance(part, nn.Linear) or turned
        if linear and int(not turned) in axes.get(f"{name}.weight", ()):
            readers[part] = Energy()
    watch(module, examples, batch_size, readers, progress)
    total = torch.zeros(structure.hidden, dtype=torch.float64)
    for part, energy in readers.items():
        columns = matrix_of(part, "").detach().double().square().sum(0)  # (hidden,)
        carried = energy.total * columns
        if float(carried.sum()) > 0:
            total = total + carried / carried.sum()
    return (total / total.max().clamp(min=torch.finfo(torch.float64).tiny)).numpy()


def cut_hidden(
    state: dict[str, Tensor],
    module: nn.Module,
    structure: Structure,
    kept: Sequence[int],
) -> dict[str, Tensor]:
    """The state of a module with the kept channels of its residual stream only.

    Where embeddings are multiplied by the root of the width (Gemma), they grow by as much as
    that root shrinks; if they are also the output projection, the last norm takes it back.
    """
    index = torch.tensor(list(kept))
    cut = dict(state)
    for name, along in hidden_axes(module, structure).items():
        for axis in along:
            cut[name] = cut[name].index_select(axis, index.to(cut[name].device))
    if structure.family.scaled_embedding:
        growth = (structure.hidden / len(kept)) ** 0.5
        embedded = module.get_input_embeddings().weight  # type: ignore[operator]
        out = getattr(module, "get_output_embeddings", lambda: None)()
        tied = out is not None and out.weight is embedded
        for name, value in module.named_parameters(remove_duplicate=False):
            if value is embedded:
                cut[name] = cut[name] * growth
        if tied:
            last = f"{structure.stack.rpartition('.')[0]}.norm.weight"
            cut[last] = (1 + cut[last]) / growth - 1  # Gemma's norms multiply by 1 + weight
    return cut


def mask_hidden(module: nn.Module, structure: Structure, kept: Sequence[int]) -> None:
    """Silence, in place, the channels of the residual stream that go.

    Whatever writes to them writes zeros; norms take their statistics over the channels that stay.
    """
    axes = hidden_axes(module, structure)
    gone = torch.tensor(sorted(set(range(structure.hidden)) - set(kept)))
    parameters = dict(module.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, along in axes.items():
            for axis in along:
                parameters[name].index_fill_(axis, gone.to(parameters[name].device), 0)
    _narrow_norms(module, axes, kept)


@contextmanager
def hidden_masked(module: nn.Module, structure: Structure, kept: Sequence[int]) -> Iterator[None]:
    """The module as `mask_hidden` makes it, for a while; it comes back bit by bit."""
    axes = hidden_axes(module, structure)
    names = canonical_names(module)
    gone = tuple(sorted(set(range(structure.hidden)) - set(kept)))
    slices = {
        Slice(names[name], axis, gone): None for name, along in axes.items() for axis in along
    }
    with masked(module, Unit("hidden", "hidden channels", None, tuple(slices))):
        before = _narrow_norms(module, axes, kept)
        try:
            yield
        finally:
            for parent, own, norm in before:
                setattr(parent, own, norm)


def _narrow_norms(
    module: nn.Module, axes: Mapping[str, tuple[int, ...]], kept: Sequence[int]
) -> list[tuple[nn.Module, str, nn.Module]]:
    """Let norms see the channels that stay; returns where each stood, its name there, and it."""
    norms = [
        (name, part)
        for name, part in module.named_modules()
        if "Norm" in type(part).__name__ and f"{name}.weight" in axes
    ]
    before = []
    for name, norm in norms:
        path, _, own = name.rpartition(".")
        parent = module.get_submodule(path)
        before.append((parent, own, norm))
        setattr(parent, own, _Narrow(norm, kept))
    return before


class _Narrow(nn.Module):
    """A norm of some channels; the others leave as zeros."""

    def __init__(self, norm: nn.Module, kept: Sequence[int]) -> None:
        super().__init__()
        self.kept = list(kept)
        self.norm = copy.deepcopy(norm)
        for name, value in norm.named_parameters():
            setattr(self.norm, name, nn.Parameter(value.detach()[self.kept]))
        if isinstance(self.norm, nn.LayerNorm):
            self.norm.normalized_shape = (len(self.kept),)

    def forward(self, entered: Tensor) -> Tensor:
        """(..., hidden) from (..., hidden)."""
        left = torch.zeros_like(entered)
        left[..., self.kept] = self.norm(entered[..., self.kept])
        return left


def _narrower(structure: Structure) -> tuple[int, int] | None:
    """Some smaller (groups, hidden width) that the config accepts."""
    if structure.family.heads_follow_width:
        fewer = structure.groups - 1
        return (fewer, fewer * structure.head_dim) if fewer else None
    for hidden in range(structure.hidden - 1, 0, -1):
        if accepts(structure, structure.groups, hidden):
            return structure.groups, hidden
    return None


def _head_axes(module: nn.Module, structure: Structure) -> set[tuple[str, int]]:
    """Axes that run over heads: as long as the residual stream is wide, and no part of it."""
    family = structure.family
    axes = set()
    for index, block in enumerate(structure.blocks(module)):
        for projection in family.attention_in:
            name = f"{structure.stack}.{index}.{projection.name}"
            turned = is_transposed(block.get_submodule(projection.name))
            axes |= {(f"{name}.weight", int(turned)), (f"{name}.bias", 0)}
        turned = is_transposed(block.get_submodule(family.attention_out))
        name = f"{structure.stack}.{index}.{family.attention_out}"
        axes.add((f"{name}.weight", int(not turned)))
    return axes
