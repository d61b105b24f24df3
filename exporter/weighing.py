"""Weighing: the two stages that score a model's parts: criteria in one run, ablation one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.progress import Prefixed
from exporter.report.importance import ORACLE
from exporter.stages import Context, Prepared, read_facts, run_stage, write_facts

if TYPE_CHECKING:
    from torch import nn

    from exporter.compress.units import Unit
    from exporter.models.examples import Examples, Train

KINDS = ("layer", "head", "group", "ffn", "hidden", "channel", "row", "column", "weight")
# What pruning removes; blocks and single weights are many, and asked for by name.
USUAL = ("layer", "head", "group", "ffn", "hidden", "channel")
ALL = ("layer", "head", "group")  # few enough to be ablated all
ABLATED = 64  # of other kinds
WEIGHTS = 256  # single weights that stand for all


@dataclass(frozen=True)
class Weighing:
    """The two stages that take time."""

    context: Context
    train: Prepared
    criteria: tuple[str, ...]
    count: int
    damping: float | None

    def proxies(self, kinds: Sequence[str]) -> dict[str, Any]:
        """Raw effects of all units by all criteria but ablation, in one run over the data."""

        def make(out: Path, scratch: Path) -> None:
            from exporter.compress.criteria import can_score
            from exporter.compress.importance import score_units
            from exporter.compress.select import cost_of

            module = self._module()
            units, notes = units_of(module, kinds)
            parts = [
                (criterion, members)
                for kind, members in units.items()
                for criterion in self.criteria
                if criterion != ORACLE and can_score(criterion, members[0].kind)
            ]
            effects = score_units(
                module,
                parts,
                self._examples(),
                task=self.context.task,
                damping=self.damping,
                scratch=scratch,
                progress=self.context.progress,
            )
            told: dict[str, Any] = {
                kind: {
                    "units": [unit.name for unit in members],
                    "layers": [unit.layer for unit in members],
                    "parameters": cost_of(module, members, "parameters").tolist(),
                    "flops": cost_of(module, members, "flops").tolist(),
                    "effects": {},
                }
                for kind, members in units.items()
            }
            for (criterion, members), values in zip(parts, effects, strict=True):
                told[members[0].kind]["effects"][criterion] = values.tolist()
            feeds = len(self._examples().feeds)
            write_facts(out, "facts.json", {"kinds": told, "notes": notes, "feeds": feeds})

        entry = run_stage(
            self.context,
            None,
            "importance",
            ("models", "compress"),
            {**self._inputs(), "kinds": list(kinds), "criteria": list(self.criteria)},
            make,
        )
        return read_facts(entry, "facts.json")

    def ablated(self, kind: str, total: int, count: int | None) -> dict[str, Any]:
        """Change of the loss without each of some units of a kind, written down one by one."""
        few = total if kind in ALL else ABLATED
        number = min(total, few if count is None else count)

        def make(out: Path, scratch: Path) -> None:
            from exporter.compress.criteria import Scene
            from exporter.compress.criteria.ablation import loss_changes
            from exporter.compress.units import spread_over

            module = self._module()
            units = units_of(module, [kind])[0][kind]
            chosen = spread_over(units, number)
            scene = Scene(
                module,
                self.context.task,
                self._examples(),
                scratch=scratch,
                progress=Prefixed(self.context.progress, kind),
            )
            loss, changes = loss_changes(scene, [units[i] for i in chosen])
            facts = {"ablated": chosen, "loss_change": changes.tolist(), "loss": loss}
            write_facts(out, "facts.json", facts)

        inputs = {**self._inputs(), "kind": kind, "units": number}
        entry = run_stage(self.context, None, "ablation", ("models", "compress"), inputs, make)
        return read_facts(entry, "facts.json")

    def _inputs(self) -> dict[str, Any]:
        return {
            "model": self.context.source.content_hash,
            "task": self.context.task.name,
            "train": self.train.key,
            "examples": self.count,
            "damping": self.damping,
        }

    def _module(self) -> nn.Module:
        from exporter.models.load import load_module

        return load_module(self.context.source).module

    def _examples(self) -> Examples[Train]:
        from exporter.compress.batching import few_feeds

        examples: Examples[Train] = self.train.examples
        return few_feeds(examples, self.count)


def units_of(module: nn.Module, kinds: Sequence[str]) -> tuple[dict[str, list[Unit]], list[str]]:
    """The units of each kind that the module has, and why some are missing."""
    from exporter.compress.hidden import hidden_axes
    from exporter.compress.structure import structure_of
    from exporter.compress.units import (
        block_units,
        channel_units,
        structure_units,
        units_along,
        weight_units,
    )

    structure = structure_of(module)
    found: dict[str, list[Unit]] = {}
    notes = []
    for kind in kinds:
        if kind == "channel":
            found[kind] = channel_units(module)
        elif kind in ("row", "column"):
            found[kind] = block_units(module, "row" if kind == "row" else "column")
        elif kind == "weight":
            found[kind] = weight_units(module, WEIGHTS)
        elif structure is not None and kind == "hidden":
            axes = hidden_axes(module, structure)
            found[kind] = units_along(module, "hidden", axes, structure.hidden)
        elif structure is not None:
            found[kind] = structure_units(module, structure, kind)  # type: ignore[arg-type]
    if "head" in found and len(found.get("group", ())) == len(found["head"]):
        del found["group"]
        notes.append("every head has keys and values of its own: heads are the groups")
    if structure is None:
        notes.append("layers, heads and units of this family are not known here: left out")
    return {kind: units for kind, units in found.items() if units}, notes
