"""Removal: cut units out of a module, or switch the same units off in place."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from exporter.compress.structure import (
    Structure,
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
    """

    layers: tuple[int, ...]
    ffn: tuple[tuple[int, ...], ...]
    groups: tuple[tuple[int, ...], ...]
    skipped: tuple[str, ...] = ()


def remove(module: nn.Module, removal: Removal) -> nn.Module:
    """A new module of the same class without the units that go, its config saying so.

    It is built from the config as it would be read back and loaded strictly: what this returns,
    `save_pretrained` and `from_pretrained` carry.
    """
    structure = _known(module)
    config = shrunk_config(
        module,
        structure,
        layers=removal.layers,
        ffn=len(removal.ffn[0]),
        groups=len(removal.groups[0]),
    )
    weights = _kept_weights(module, structure, removal)
    kind: Any = type(module)
    original: Any = module
    with torch.random.fork_rng(devices=[]):  # the initial weights are all replaced
        smaller: nn.Module = kind._from_config(
            config,
            dtype=next(module.parameters()).dtype,
            attn_implementation=original.config._attn_implementation,
        )
    smaller.load_state_dict(weights, strict=True)
    if getattr(original, "generation_config", None) is not None:
        smaller.generation_config = copy.deepcopy(original.generation_config)
    return smaller.train(module.training)


def mask(module: nn.Module, removal: Removal) -> nn.Module:
    """A copy of `module`, full size, in which the units that go have no effect.

    It computes what `remove` computes; layers that go pass their input on.
    """
    structure = _known(module)
    masked = copy.deepcopy(module)
    blocks = structure.blocks(masked)
    family = structure.family
    with torch.no_grad():
        for index, units, groups in zip(removal.layers, removal.ffn, removal.groups, strict=True):
            gone = sorted(set(range(structure.ffn)) - set(units))
            matrix_of(blocks[index], family.ffn_out)[:, gone] = 0
            if family.attention_out:
                width = structure.width("query")
                lost = set(range(structure.groups)) - set(groups)
                columns = [g * width + i for g in sorted(lost) for i in range(width)]
                matrix_of(blocks[index], family.attention_out)[:, columns] = 0
    for index in set(range(structure.layers)) - set(removal.layers):
        blocks[index].register_forward_hook(_pass_on, with_kwargs=True)
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
    kept = {name: value for name, value in state.items() if not name.startswith(prefix)}
    blocks = structure.blocks(module)
    width = structure.width("query")
    for new, (old, units, groups) in enumerate(
        zip(removal.layers, removal.ffn, removal.groups, strict=True)
    ):
        rows = {
            p.name: structure.rows(p, units=units, groups=groups)
            for p in (*family.ffn_in, *family.attention_in)
        }
        columns = {family.ffn_out: list(units)}
        if family.attention_out:
            columns[family.attention_out] = [g * width + i for g in groups for i in range(width)]
        for name, value in blocks[old].state_dict().items():
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
