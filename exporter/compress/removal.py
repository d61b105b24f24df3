"""Removal: cut units out of a module, or switch the same units off in place."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from exporter.compress.hidden import cut_hidden, mask_hidden
from exporter.compress.structure import (
    Structure,
    build,
    is_transposed,
    matrix_of,
    shrunk_config,
    structure_of,
)


@dataclass(frozen=True)
class Removal:
    """What stays of a module.

    Attributes:
        layers: indices of the layers that stay, ascending.
        ffn, groups: for each layer that stays, indices of the units and KV groups that stay,
            ascending; the same number in every layer.
        skipped: what was asked for and cannot be done, a sentence each.
        hidden: channels of the residual stream that stay, ascending; None: all of them. Where heads
            follow the width, `groups` must say as many heads as fit it.
    """

    layers: tuple[int, ...]
    ffn: tuple[tuple[int, ...], ...]
    groups: tuple[tuple[int, ...], ...]
    skipped: tuple[str, ...] = ()
    hidden: tuple[int, ...] | None = None


def remove(module: nn.Module, removal: Removal) -> nn.Module:
    """A new module of the same class without the units that go, its config saying so.

    It is built from the config as it would be read back and loaded strictly: what this returns,
    `save_pretrained` and `from_pretrained` carry.
    """
    structure = _known(module)
    config = shrunk_config(
        structure,
        layers=removal.layers,
        ffn=len(removal.ffn[0]),
        groups=len(removal.groups[0]),
        hidden=structure.hidden if removal.hidden is None else len(removal.hidden),
    )
    original: Any = module
    smaller = build(module, config)
    smaller.load_state_dict(_kept_weights(module, structure, removal), strict=True)
    if getattr(original, "generation_config", None) is not None:
        smaller.generation_config = copy.deepcopy(original.generation_config)
    return smaller.train(module.training)


def mask(module: nn.Module, removal: Removal) -> nn.Module:
    """A copy of `module`, full size, in which the units that go have no effect.

    It computes what `remove` computes: layers that go pass their input on, and norms take their
    statistics over the channels of the residual stream that stay.
    """
    structure = _known(module)
    masked = copy.deepcopy(module)
    blocks = structure.blocks(masked)
    family = structure.family
    with torch.no_grad():
        for index, units, groups in zip(removal.layers, removal.ffn, removal.groups, strict=True):
            gone = sorted(set(range(structure.ffn)) - set(units))
            matrix_of(blocks[index], family.ffn_out)[:, gone] = 0
            lost = sorted(set(range(structure.groups)) - set(groups))
            matrix_of(blocks[index], family.attention_out)[:, structure.features(lost)] = 0
    for index in set(range(structure.layers)) - set(removal.layers):
        blocks[index].register_forward_hook(_pass_on, with_kwargs=True)
    if removal.hidden is not None:
        mask_hidden(masked, structure, removal.hidden)
    return masked


def _pass_on(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Replace a layer's output with its input."""
    entered = args[0] if args else kwargs["hidden_states"]
    return entered if isinstance(output, Tensor) else (entered, *output[1:])


def _kept_weights(module: nn.Module, structure: Structure, removal: Removal) -> dict[str, Tensor]:
    """The state of the smaller module, cut out of the state of `module`."""
    family = structure.family
    prefix = f"{structure.stack}."
    state = module.state_dict()
    if removal.hidden is not None:
        state = cut_hidden(state, module, structure, removal.hidden)
    kept = {name: value for name, value in state.items() if not name.startswith(prefix)}
    blocks = structure.blocks(module)
    for new, (old, units, groups) in enumerate(
        zip(removal.layers, removal.ffn, removal.groups, strict=True)
    ):
        rows = {
            p.name: structure.rows(p, units=units, groups=groups)
            for p in (*family.ffn_in, *family.attention_in)
        }
        columns = {
            family.ffn_out: list(units),
            family.attention_out: structure.features(groups),
        }
        for name in blocks[old].state_dict():
            value = state[f"{prefix}{old}.{name}"]
            owner, _, kind = name.rpartition(".")
            if owner in rows:
                turned = kind == "weight" and is_transposed(blocks[old].get_submodule(owner))
                value = value[:, rows[owner]] if turned else value[rows[owner]]
            elif owner in columns and kind == "weight":
                turned = is_transposed(blocks[old].get_submodule(owner))
                value = value[columns[owner]] if turned else value[:, columns[owner]]
            kept[f"{prefix}{new}.{name}"] = value
    return kept


def _known(module: nn.Module) -> Structure:
    structure = structure_of(module)
    if structure is None:
        raise ValueError(f"{type(module).__name__} has no removable units")
    return structure
