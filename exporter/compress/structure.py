"""Structure: which units of a module can go so that its own config still describes it.

Families are listed in `families`. A part that the config cannot say (BERT's heads without its
hidden width) is listed with the reason, and stays.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from exporter.compress.families import FAMILIES, Family, Projection, Unit


@dataclass(frozen=True)
class Structure:
    """What can be removed from one module.

    Attributes:
        model_type: the config's name of the family.
        family: where its parts are.
        stack: path of the list of layers in the module.
        layers: number of layers.
        ffn: feed-forward units in each layer.
        groups: KV groups in each layer (heads, where every head has its own); 0 if heads stay.
        heads_per_group: query heads that share a group.
        head_dim: features of one head.
        group_counts: numbers of groups that the config accepts, ascending.
        pinned: layers that must stay.
        skipped: part (`heads`, `layers`) -> why it cannot be removed.
    """

    model_type: str
    family: Family
    stack: str
    layers: int
    ffn: int
    groups: int
    heads_per_group: int
    head_dim: int
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

    skipped = {}
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        skipped["layers"] = f"{model_type} scales attention by the layer's number"
    structure = Structure(
        model_type=model_type,
        family=family,
        stack=prefix,
        layers=len(stack),
        ffn=widths.pop(),
        groups=0,
        heads_per_group=0,
        head_dim=0,
        group_counts=(),
        pinned=(0,) if family.first_layer_stays else (),
        skipped=skipped,
    )
    if not family.attention_in:
        skipped["heads"] = (
            f"the config of {model_type} has no head size of its own: "
            "heads can only go together with the hidden width"
        )
        return structure
    return _with_groups(module, structure)


def _with_groups(module: nn.Module, structure: Structure) -> Structure:
    """The structure with its KV groups, and the counts of them that the config accepts."""
    config: Any = module.config
    heads = int(config.num_attention_heads)
    groups = int(getattr(config, "num_key_value_heads", None) or heads)
    first = structure.blocks(module)[0]
    features = matrix_of(first, structure.family.attention_out).shape[1]
    values: dict[str, Any] = {f: getattr(structure, f) for f in structure.__dataclass_fields__}
    values |= {
        "groups": groups,
        "heads_per_group": heads // groups,
        "head_dim": features // heads,
    }
    whole = Structure(**values)
    accepted = []
    for count in range(1, groups + 1):
        try:
            shrunk_config(module, whole, layers=range(whole.layers), ffn=whole.ffn, groups=count)
        except Exception:  # a config class may refuse with any exception type of its own
            continue
        accepted.append(count)
    return Structure(**{**values, "group_counts": tuple(accepted)})


def shrunk_config(
    module: nn.Module, structure: Structure, *, layers: Sequence[int], ffn: int, groups: int
) -> Any:
    """The module's config with fewer units, as it reads back from its own config.json.

    Args:
        layers: indices of the layers that stay.
        ffn: feed-forward units that stay in each layer.
        groups: KV groups that stay in each layer.
    """
    config: Any = copy.deepcopy(module.config)
    if ffn != structure.ffn:
        setattr(config, structure.family.ffn_field, ffn)
    if groups != structure.groups:
        # Written out even where it used to follow from the width: it no longer does.
        config.head_dim = structure.head_dim
        config.num_attention_heads = groups * structure.heads_per_group
        if getattr(config, "num_key_value_heads", None) is not None:
            config.num_key_value_heads = groups
    if len(layers) != structure.layers:
        for name, value in config.to_dict().items():
            per_layer = isinstance(value, list | tuple) and len(value) == structure.layers
            if per_layer and "layer" in name:
                setattr(config, name, [value[i] for i in layers])
        config.num_hidden_layers = len(layers)
    return type(config).from_dict(config.to_dict())


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
