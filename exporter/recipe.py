"""Recipe: what is tried on the way to a target, from mild to bold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from exporter.toml import read_toml, validated

# One line each: a scheme NAME lives in exporter/quantize/NAME.py, a task in
# exporter/models/tasks/NAME.py (dashes become underscores).
SCHEMES = ("none", "dynamic-int8", "static-int8", "int8-weights", "int4-weights", "float16")
# Those that training can round as (exporter/compress/qat.py).
QUANTIZE_AWARE = ("dynamic-int8", "static-int8", "int8-weights", "int4-weights")
TASKS = ("text-generation", "text-classification", "feature-extraction", "image-classification")

_UNITS = ("ffn", "head", "group", "hidden", "channel", "row", "column")
# A criterion NAME lives in exporter/compress/criteria/NAME.py; beside it, what it can score.
CRITERIA: dict[str, tuple[str, ...]] = {
    "magnitude": ("weight", *_UNITS, "layer"),
    "magnitude-l1": ("weight", *_UNITS, "layer"),
    "wanda": ("weight", *_UNITS),
    "taylor": ("weight", *_UNITS, "layer"),
    "fisher": ("weight", *_UNITS, "layer"),
    "mask-gradient": ("ffn", "head", "group", "channel", "layer"),
    "obs": ("weight", *_UNITS, "layer"),
    "block-influence": ("layer",),
    "ablation": (*_UNITS, "layer"),
}


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Pruning(_Table):
    """What to remove; every number is the share that goes, 0 to below 1."""

    ffn: float = Field(0.0, ge=0, lt=1, description="Share of feed-forward units removed.")
    heads: float = Field(
        0.0, ge=0, lt=1, description="Share of attention heads (whole KV groups) removed."
    )
    layers: float = Field(0.0, ge=0, lt=1, description="Share of whole layers removed.")
    hidden: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the hidden width removed, from every layer at once; BERT's and "
        "GPT-2's heads shrink with it.",
    )
    channels: float = Field(
        0.0, ge=0, lt=1, description="Share of a convolutional network's channels removed."
    )
    sparsity: float = Field(
        0.0, ge=0, lt=1, description="Share of single weights set to zero: download size only."
    )
    sparsity_scope: Literal["layer", "global"] = Field(
        "layer", description="Take that share from each matrix, or from all of them together."
    )
    sparsity_pattern: str = Field(
        "",
        description="'2:4' keeps 2 of 4 neighbours along the input axis; empty sets no pattern.",
    )
    sparsity_schedule: Literal["once", "cubic"] = Field(
        "once",
        description="All zeros at once, or more and more of them while fine-tuning goes on.",
    )
    criterion: str = Field(
        "wanda", description=f"How importance is scored: one of {', '.join(CRITERIA)}."
    )
    compensate: Literal["none", "bias", "least-squares"] = Field(
        "least-squares",
        description="What takes over from removed units: nothing, the bias of what reads them, or "
        "also its remaining weights.",
    )
    examples: int = Field(128, ge=1, description="Training examples that importance looks at.")

    @property
    def structured(self) -> bool:
        """True when units are physically removed."""
        return self.blocks or bool(self.channels)

    @property
    def blocks(self) -> bool:
        """True when parts of transformer layers are removed."""
        return bool(self.ffn or self.heads or self.layers or self.hidden)

    @property
    def sparsity_group(self) -> int | None:
        """Neighbours that the pattern speaks of, such as 4 in 2:4; None without a pattern."""
        return int(self.sparsity_pattern.split(":")[1]) if self.sparsity_pattern else None

    @property
    def zero_share(self) -> float:
        """Share of single weights that become zero, by number or by pattern."""
        if not self.sparsity_pattern:
            return self.sparsity
        kept, group = map(int, self.sparsity_pattern.split(":"))
        return 1 - kept / group

    @field_validator("sparsity_pattern")
    @classmethod
    def _known_pattern(cls, value: str) -> str:
        if value:
            found = re.fullmatch(r"([0-9]{1,4}):([0-9]{1,4})", value)
            if found is None or not 0 < int(found[1]) < int(found[2]):
                raise ValueError(f"must be N:M with 0 < N < M, such as '2:4', got '{value}'")
        return value

    @model_validator(mode="after")
    def _something(self) -> Pruning:
        if not (self.structured or self.zero_share):
            raise ValueError(
                "removes nothing; set ffn, heads, layers, hidden, channels or sparsity above 0"
            )
        scored = CRITERIA.get(self.criterion)
        if scored is None:
            raise ValueError(f"unknown criterion '{self.criterion}'; known: {', '.join(CRITERIA)}")
        parts = (
            ("ffn", self.ffn, "ffn"),
            ("heads", self.heads, "group"),
            ("hidden", self.hidden, "hidden"),
            ("sparsity", self.zero_share, "weight"),
        )
        for name, share, kind in parts:
            if share and kind not in scored:
                able = ", ".join(c for c, kinds in CRITERIA.items() if kind in kinds)
                raise ValueError(
                    f"{self.criterion} cannot score what {name} removes; take one of {able}"
                )
        if self.sparsity_pattern and self.sparsity and abs(self.sparsity - self.zero_share) > 1e-6:
            raise ValueError(
                f"sparsity {self.sparsity:g} is not what sparsity_pattern {self.sparsity_pattern} "
                f"leaves ({self.zero_share:g}); leave one of them out"
            )
        if self.sparsity_pattern and self.sparsity_scope == "global":
            raise ValueError(
                "a sparsity_pattern takes the same share everywhere; leave sparsity_scope out"
            )
        return self


class FineTune(_Table):
    """Recovery by distillation from the unpruned model, plus the task's own loss."""

    steps: int = Field(200, ge=1, description="Optimizer steps at most, over all rounds.")
    batch_size: int = Field(
        16, ge=1, description="Examples an optimizer step sees, over all processes."
    )
    accumulate: int = Field(
        1, ge=1, description="Parts that a process takes its share of a batch in: saves memory."
    )
    learning_rate: float = Field(2e-4, gt=0, lt=1, description="Peak of the schedule.")
    distill_weight: float | Literal["auto"] = Field(
        0.5,
        description="Share of the distillation loss; the rest is the task's. 'auto' adds the "
        "task's loss where that wins a short trial on development data.",
    )
    temperature: float = Field(1.0, gt=0, description="Softens both distributions.")
    hidden_weight: float = Field(
        0.0, ge=0, description="Weight of hidden states' distance to the teacher's; 0 leaves it."
    )
    rank: int | None = Field(
        None, ge=1, description="Train low-rank adapters of this rank, and nothing else."
    )
    mixed_precision: Literal["auto", "no", "bfloat16"] = Field(
        "auto", description="'auto': bfloat16 arithmetic where processor and size make it faster."
    )
    largest_cut: float = Field(
        1 / 3,
        gt=0,
        le=1,
        description="Share of the parameters (embeddings left out) that one round removes at "
        "most: bolder pruning takes rounds, each with its part of the steps.",
    )
    evaluate_every: int = Field(50, ge=1, description="Steps between looks at development data.")
    patience: int = Field(4, ge=1, description="Looks without improvement before stopping.")
    stop_gap: float | None = Field(
        None,
        description="Stop once the development loss is shown (95 %) to exceed the teacher's by "
        "at most this much; unset trains on for as long as it improves.",
    )
    quantize_aware: bool = Field(
        False,
        description="Train with weights and activations rounded as the candidate's quantization "
        "will round them.",
    )
    train_reference: bool = Field(
        True,
        description="Give the reference as many steps, and judge against the better one.",
    )

    @field_validator("distill_weight", mode="before")
    @classmethod
    def _share_or_auto(cls, value: object) -> object:
        if value == "auto":
            return value
        try:
            share = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            share = -1.0
        if not 0 <= share <= 1:
            raise ValueError("must be a share from 0 to 1, or 'auto'")
        return share


class Candidate(_Table):
    """One way to make the model smaller."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$", description="Short, unique in the recipe.")
    tasks: tuple[str, ...] = Field(TASKS, description="Tasks it is meant for.")
    pruning: Pruning | None = None
    fine_tune: FineTune | None = None
    quantization: str = Field("none", description=f"One of {', '.join(SCHEMES)}.")
    block_size: int = Field(
        32, description="Weights that share a scale (weight-only schemes): 16, 32, 64, 128 or 256."
    )
    per_channel: bool = Field(True, description="One scale per output channel where possible.")

    @field_validator("tasks")
    @classmethod
    def _known_tasks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for task in value:
            if task not in TASKS:
                raise ValueError(f"unknown task '{task}'; one of {', '.join(TASKS)}")
        return value

    @field_validator("quantization")
    @classmethod
    def _known_scheme(cls, value: str) -> str:
        if value not in SCHEMES:
            raise ValueError(f"unknown scheme '{value}'; one of {', '.join(SCHEMES)}")
        return value

    @model_validator(mode="after")
    def _rounding_known(self) -> Candidate:
        aware = self.fine_tune is not None and self.fine_tune.quantize_aware
        if aware and self.quantization not in QUANTIZE_AWARE:
            raise ValueError(
                f"quantize_aware cannot train for quantization '{self.quantization}'; "
                f"set one of {', '.join(QUANTIZE_AWARE)}, or leave quantize_aware out"
            )
        return self

    @model_validator(mode="after")
    def _schedule_trains(self) -> Candidate:
        pruning = self.pruning
        if pruning is not None and pruning.sparsity_schedule == "cubic":
            if self.fine_tune is None:
                raise ValueError(
                    "sparsity_schedule 'cubic' rises while fine-tuning goes on; add fine_tune"
                )
            if not pruning.zero_share:
                raise ValueError("sparsity_schedule 'cubic' needs a sparsity or a sparsity_pattern")
        return self

    @model_validator(mode="after")
    def _adapters_alone(self) -> Candidate:
        tune, pruning = self.fine_tune, self.pruning
        rising = pruning is not None and pruning.sparsity_schedule == "cubic"
        if tune is not None and tune.rank is not None and (tune.quantize_aware or rising):
            name = "quantize_aware" if tune.quantize_aware else "sparsity_schedule 'cubic'"
            raise ValueError(
                f"rank trains adapters on weights that stand still, and {name} changes those; "
                "leave one of them out"
            )
        return self

    @field_validator("block_size")
    @classmethod
    def _known_block(cls, value: int) -> int:
        if value not in (16, 32, 64, 128, 256):
            raise ValueError("must be 16, 32, 64, 128 or 256")
        return value


class Recipe(_Table):
    """Candidates in the order they are tried, and what they share."""

    seed: int = Field(0, ge=0, description="Seed of everything random.")
    calibration_examples: int = Field(128, ge=1, description="Examples that set static ranges.")
    candidates: tuple[Candidate, ...] = Field(min_length=1)

    @field_validator("candidates")
    @classmethod
    def _unique(cls, value: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
        names = [c.name for c in value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two candidates are called '{name}'; give each its own name")
        return value

    def for_task(self, task: str) -> tuple[Candidate, ...]:
        """The candidates meant for `task`, in order."""
        return tuple(c for c in self.candidates if task in c.tasks)


def load_recipe(path: Path | str) -> Recipe:
    """Read a recipe from a TOML file.

    Raises:
        ProfileError: the file is missing, malformed, or breaks a rule.
    """
    file = Path(path)
    return validated(Recipe, read_toml(file), place=str(path))


def recipe_from(value: Recipe | Path | str | dict[str, Any]) -> Recipe:
    """A recipe from whatever the Python API was given."""
    if isinstance(value, Recipe):
        return value
    if isinstance(value, dict):
        return validated(Recipe, value, place="recipe")
    return load_recipe(value)
