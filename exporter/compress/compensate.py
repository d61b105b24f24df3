"""Compensate: what is left takes over, as well as it can, what the removed units put out.

Removed feed-forward units and heads no longer enter the projection that reads them. `bias` moves
what that projection made of them on average into its bias. `least-squares` also changes its
remaining weights so that its output stays as near as possible to the original's on training data:
for inputs x with second moments H = E[x xᵀ] and kept inputs S,

    W' = W[:, S] + W[:, gone] · H[gone, S] · (H[S, S] + λI)⁻¹

which at λ = 0 is W · H[:, S] · H[S, S]⁻¹, the least-squares solution, and for large λ plain
removal. H is the covariance where there is a bias to take the mean. It is the update of the
optimal brain surgeon (Hassibi & Stork 1993) for whole units, as in Kwon et al.,
arXiv:2204.09656. Statistics are sums over the original's activations: memory grows with the
widths, not with the data.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from exporter.compress.activations import Moments, Observer, watch
from exporter.compress.removal import Removal
from exporter.compress.structure import Structure, matrix_of
from exporter.models.examples import Examples, Train
from exporter.models.tasks import SILENT
from exporter.progress import Progress

Method = Literal["bias", "least-squares"]  # as `Pruning.compensate` has them
DAMPING = 0.01  # λ as a share of the mean of H's diagonal
MOMENTS_BYTES = 1 << 29  # second moments that are collected in one pass over the data


@dataclass(frozen=True)
class Consumer:
    """A projection some of whose inputs go.

    Attributes:
        name: path in the module.
        part: its kind in words (`ffn`, `heads`).
        kept, gone: its inputs that stay and that go, ascending.
    """

    name: str
    part: str
    kept: tuple[int, ...]
    gone: tuple[int, ...]


def compensate(
    module: nn.Module,
    structure: Structure,
    removal: Removal,
    examples: Examples[Train] | None,
    method: Method,
    *,
    batch_size: int = 8,
    progress: Progress = SILENT,
) -> tuple[nn.Module, list[str]]:
    """A copy of `module`, full size, from which `removal` takes away less.

    Returns:
        The copy, to be cut by `remove`, and what could not be compensated, a sentence each.

    Raises:
        DataError: there are no training examples.
    """
    changed = copy.deepcopy(module)
    consumers = list(_consumers(structure, removal))
    skipped: dict[str, str] = {}
    for some in _portions(module, consumers, method):
        seen = {one.name: Moments() if method == "least-squares" else Means() for one in some}
        observers: dict[nn.Module, Observer] = {
            module.get_submodule(name): moments for name, moments in seen.items()
        }
        watch(module, examples, batch_size, observers, progress)
        for one in some:
            why = _apply(changed.get_submodule(one.name), one, seen[one.name])
            if why:
                skipped.setdefault(one.part, f"compensation of {one.part}: {why}")
    return changed, list(skipped.values())


@dataclass
class Means:
    """Sum over the positions of a layer's input."""

    count: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros(()))

    def __call__(self, entered: Tensor, left: Tensor) -> None:
        """Add the rows that a layer took in; an `Observer`."""
        self.count += entered.shape[0]
        self.total = self.total + entered.double().sum(0)

    @property
    def mean(self) -> Tensor:
        """Mean input, (in,)."""
        return self.total / max(self.count, 1)


def _consumers(structure: Structure, removal: Removal) -> Iterator[Consumer]:
    """Projections that lose inputs, in the layers that stay."""
    family = structure.family
    for layer, units, groups in zip(removal.layers, removal.ffn, removal.groups, strict=True):
        features = structure.features(groups)
        whole = structure.groups * structure.width("query")
        for part, name, kept, count in (
            ("ffn", family.ffn_out, units, structure.ffn),
            ("heads", family.attention_out, features, whole),
        ):
            gone = sorted(set(range(count)) - set(kept))
            if gone:
                path = f"{structure.stack}.{layer}.{name}"
                yield Consumer(path, part, tuple(kept), tuple(gone))


def _portions(
    module: nn.Module, consumers: Sequence[Consumer], method: Method
) -> Iterator[list[Consumer]]:
    """Consumers that one pass over the data can watch within the memory."""
    portion: list[Consumer] = []
    held = 0
    for one in consumers:
        inputs = len(one.kept) + len(one.gone)
        size = 8 * inputs**2 if method == "least-squares" else 0
        if portion and held + size > MOMENTS_BYTES:
            yield portion
            portion, held = [], 0
        portion.append(one)
        held += size
    if portion:
        yield portion


def _apply(linear: nn.Module, consumer: Consumer, seen: Moments | Means) -> str:
    """Change a projection in place; returns why not, or not as asked for."""
    kept, gone = list(consumer.kept), list(consumer.gone)
    bias = linear.bias
    if not seen.count:
        return "the data never reaches it"
    why = ""
    if isinstance(seen, Moments) and seen.count <= len(kept):
        why = f"{seen.count} positions are too few for the moments of {len(kept)} inputs"
    elif bias is None and not isinstance(seen, Moments):
        why = "there is no bias to take what was put out on average"
    weight = matrix_of(linear, "")  # (out, in)
    lost = weight.detach().double()[:, gone]
    unexplained = seen.mean[gone]
    with torch.no_grad():
        if isinstance(seen, Moments) and not why:
            shares = _explained(seen, kept, gone, centred=bias is not None)
            weight[:, kept] += (lost @ shares).to(weight.dtype)
            unexplained = unexplained - shares @ seen.mean[kept]
        if isinstance(bias, Tensor):
            bias += (lost @ unexplained).to(bias.dtype)
    return why


def _explained(moments: Moments, kept: list[int], gone: list[int], *, centred: bool) -> Tensor:
    """How each input that goes is best predicted from those that stay, (gone, kept)."""
    second = moments.second / moments.count
    if centred:
        second = second - torch.outer(moments.mean, moments.mean)
    inner = second[kept][:, kept]
    ridge = (DAMPING * inner.diagonal().mean()).clamp(min=torch.finfo(torch.float64).tiny)
    inner.diagonal().add_(ridge)
    shares: Tensor = torch.linalg.solve(inner, second[kept][:, gone])  # (kept, gone)
    return shares.T
