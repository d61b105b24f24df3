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


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Pruning(_Table):
    """What to remove; every number is the share that goes, 0 to below 1."""

    ffn: float = Field(0.0, ge=0, lt=1, description="Share of feed-forward units removed.")
    heads: float = Field(
        0.0, ge=0, lt=1, description="Share of attention heads (whole KV groups) removed."
    )
    layers: float = Field(0.0, ge=0, lt=1, description="Share of whole layers removed.")
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
    criterion: Literal["magnitude", "wanda"] = Field(
        "wanda", description="How importance is scored."
    )
    examples: int = Field(128, ge=1, description="Training examples that importance looks at.")

    @property
    def structured(self) -> bool:
        """True when units are physically removed."""
        return bool(self.ffn or self.heads or self.layers)

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
            raise ValueError("removes nothing; set ffn, heads, layers or sparsity above 0")
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

    steps: int = Field(200, ge=1, description="Optimizer steps at most.")
    batch_size: int = Field(16, ge=1, description="Examples an optimizer step sees.")
    learning_rate: float = Field(2e-4, gt=0, lt=1, description="Peak of the schedule.")
    distill_weight: float = Field(
        0.5, ge=0, le=1, description="Share of the distillation loss; the rest is the task's."
    )
    temperature: float = Field(1.0, gt=0, description="Softens both distributions.")
    evaluate_every: int = Field(50, ge=1, description="Steps between looks at development data.")
    patience: int = Field(4, ge=1, description="Looks without improvement before stopping.")
    quantize_aware: bool = Field(
        False,
        description="Train with weights and activations rounded as the candidate's quantization "
        "will round them.",
    )
    train_reference: bool = Field(
        True,
        description="Give the reference as many steps, and judge against the better one.",
    )


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
