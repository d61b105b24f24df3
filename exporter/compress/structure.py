"""Structure: which units of a module can go so that its own config still describes it.

Families are listed in `families`. A part that the config cannot say (BERT's heads without its
hidden width) is listed with the reason, and stays. Whether a config can say something is asked
of the config: each class has rules of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from exporter.compress.families import FAMILIES, Family, Projection, Unit


@dataclass(frozen=True)
class Structure:
    """What can be removed from one module.

    Attributes:
        model_type: the config's name of the family.
        config: of the module.
        family: where its parts are.
        stack: path of the list of layers in the module.
        layers: number of layers.
        ffn: feed-forward units in each layer.
        groups: KV groups in each layer (heads, where every head has its own).
        heads_per_group: query heads that share a group.
        head_dim: features of one head.
        hidden: channels of the residual stream.
        group_counts: numbers of groups that the config accepts at this width, ascending.
        pinned: layers that must stay.
        skipped: part (`heads`, `layers`, `hidden`) -> why it cannot be removed by itself.
    """

    model_type: str
    config: Any
    family: Family
    stack: str
    layers: int
    ffn: int
    groups: int
    heads_per_group: int
    head_dim: int
    hidden: int
    group_counts: tuple[int, ...]
    pinned: tuple[int, ...]
    skipped: dict[str, str]

    def blocks(self, module: nn.Module) -> list[nn.Module]:
        """The layers of `module`, first to last."""
        stack = module.get_submodule(self.stack)
        assert isinstance(stack, nn.ModuleList)
        return list(stack)

    def rows(
        self, projection: Projection, *, units: Sequence[int], groups: Sequence[int]
    ) -> list[int]:
        """Output rows of a projection that belong to the given units and groups."""
        rows: list[int] = []
        offset = 0
        for segment in projection.segments:
            chosen, count = (units, self.ffn) if segment == "ffn" else (groups, self.groups)
            width = self.width(segment)
            rows += [offset + index * width + i for index in chosen for i in range(width)]
            offset += count * width
        return rows

    def features(self, groups: Sequence[int]) -> list[int]:
        """What the given groups' heads put out: columns of the output projection."""
        width = self.width("query")
        return [group * width + i for group in groups for i in range(width)]

    def width(self, unit: Unit) -> int:
        """Features that one unit, or one group's queries or values, take up."""
        if unit == "ffn":
            return 1
        return self.head_dim * (self.heads_per_group if unit == "query" else 1)


def structure_of(module: nn.Module) -> Structure | None:
    """What can be removed from `module`; None if its family is not known here."""
    config: Any = getattr(module, "config", None)
    model_type = str(getattr(config, "model_type", ""))
    family = FAMILIES.get(model_type)
    if family is None:
        return None
    base = getattr(module, "base_model", module)
    try:
        stack: Any = base.get_submodule(family.stack)
        widths = {matrix_of(block, family.ffn_out).shape[1] for block in stack}
    except AttributeError:
        return None
    if len(widths) != 1:
        return None
    prefix = next((name for name, part in module.named_modules() if part is stack), None)
    if prefix is None:
        return None

    heads = int(config.num_attention_heads)
    groups = int(getattr(config, "num_key_value_heads", None) or heads)
    leaving = matrix_of(stack[0], family.attention_out)  # (hidden, heads * head_dim)
    structure = Structure(
        model_type=model_type,
        config=config,
        family=family,
        stack=prefix,
        layers=len(stack),
        ffn=widths.pop(),
        groups=groups,
        heads_per_group=heads // groups,
        head_dim=leaving.shape[1] // heads,
        hidden=leaving.shape[0],
        group_counts=(groups,),
        pinned=(0,) if family.first_layer_stays else (),
        skipped=_skipped(module, family),
    )
    if "heads" in structure.skipped:
        return structure
    counts = tuple(n for n in range(1, groups + 1) if accepts(structure, n, structure.hidden))
    return replace(structure, group_counts=counts)


def _skipped(module: nn.Module, family: Family) -> dict[str, str]:
    """Part -> why it cannot be removed by itself."""
    config: Any = module.config
    skipped = {}
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        skipped["layers"] = f"{config.model_type} scales attention by the layer's number"
    if family.heads_follow_width:
        skipped["heads"] = (
            f"the config of {config.model_type} has no head size of its own: "
            "heads can only go together with the hidden width"
        )
    if getattr(module, "base_model", module) is module:
        skipped["hidden"] = (
            f"what {type(module).__name__} answers is its hidden state: "
            "a narrower one is another shape of answer"
        )
    elif getattr(config, "add_cross_attention", False):
        skipped["hidden"] = f"cross-attention of {config.model_type} is not supported"
    return skipped


def accepts(structure: Structure, groups: int, hidden: int) -> bool:
    """Whether the config can say so many KV groups and channels of the residual stream."""
    if structure.family.heads_follow_width and hidden != groups * structure.head_dim:
        return False
    try:
        shrunk_config(
            structure,
            layers=range(structure.layers),
            ffn=structure.ffn,
            groups=groups,
            hidden=hidden,
        )
    except Exception:  # a config class may refuse with any exception type of its own
        return False
    return True


def shrunk_config(
    structure: Structure, *, layers: Sequence[int], ffn: int, groups: int, hidden: int
) -> Any:
    """The module's config with fewer units, as it reads back from its own config.json.

    Args:
        layers: indices of the layers that stay.
        ffn: feed-forward units that stay in each layer.
        groups: KV groups that stay in each layer.
        hidden: channels of the residual stream that stay.
    """
    config: Any = copy.deepcopy(structure.config)
    family = structure.family
    if (ffn, hidden) != (structure.ffn, structure.hidden):
        # Written out even where it used to follow from the width (GPT-2's n_inner).
        setattr(config, family.ffn_field, ffn)
    if (groups, hidden) != (structure.groups, structure.hidden):
        if not family.heads_follow_width:
            config.head_dim = structure.head_dim  # written out likewise
        config.num_attention_heads = groups * structure.heads_per_group
        if getattr(config, "num_key_value_heads", None) is not None:
            config.num_key_value_heads = groups
    if hidden != structure.hidden:
        if getattr(config, "embedding_size", None) == structure.hidden:
            config.embedding_size = hidden  # ELECTRA has a projection only where they differ
        config.hidden_size = hidden
    if len(layers) != structure.layers:
        for name, value in config.to_dict().items():
            per_layer = isinstance(value, list | tuple) and len(value) == structure.layers
            if per_layer and "layer" in name:
                setattr(config, name, [value[i] for i in layers])
        config.num_hidden_layers = len(layers)
    return type(config).from_dict(config.to_dict())


def build(module: nn.Module, config: Any) -> nn.Module:
    """A module of the same class as `module` from another config, its weights yet to be loaded."""
    kind: Any = type(module)
    original: Any = module
    with torch.random.fork_rng(devices=[]):  # the initial weights are all replaced
        built: nn.Module = kind._from_config(
            config,
            dtype=next(module.parameters()).dtype,
            attn_implementation=original.config._attn_implementation,
        )
    return built


def matrix_of(block: nn.Module, name: str) -> Tensor:
    """The weight of a linear layer below `block` as (out, in), a view of the parameter."""
    linear = block.get_submodule(name)
    weight = linear.weight
    assert isinstance(weight, Tensor)
    return weight.T if is_transposed(linear) else weight


def is_transposed(linear: nn.Module) -> bool:
    """True for GPT-2's Conv1D, which keeps its weight as (in, out)."""
    return any(kind.__name__ == "Conv1D" for kind in type(linear).__mro__)


def parameter_count(module: nn.Module) -> int:
    """Parameters of a module; a shared one counts once."""
    return sum(p.numel() for p in module.parameters())


def nonzero_count(module: nn.Module) -> int:
    """Parameters that are not exactly zero."""
    return sum(int(torch.count_nonzero(p)) for p in module.parameters())
