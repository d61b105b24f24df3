"""Budget: a ceiling, or a margin, on one metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Table(BaseModel):
    """A table of a profile: no key that is not known, and no change once it was read."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class BudgetKind:
    """What one budget measures and which side of its limit is good.

    Attributes:
        origin: its value for a candidate that loses nothing or costs nothing.
        veto: it blocks on evidence of harm instead of demanding evidence of none: what was
            observed must lie within the limit. For tails and small groups, about which a test
            set of ordinary size can never prove anything.
    """

    metric: str
    title: str
    unit: str
    good: Literal["below", "above"]
    tasks: tuple[str, ...] | None = None  # None: every task
    origin: float = 0.0
    veto: bool = False


CLASSIFICATION_TASKS = ("text-classification", "image-classification")
ACCURACY_TASKS = (*CLASSIFICATION_TASKS, "feature-extraction")
KL_TASKS = (*CLASSIFICATION_TASKS, "text-generation")

# Judged whenever the profile lists devices; no profile has to ask for it.
DEVICE_FAILURES = "device_failures"

BUDGET_KINDS: dict[str, BudgetKind] = {
    kind.metric: kind
    for kind in (
        BudgetKind("accuracy_drop_points", "accuracy drop", "points", "below", ACCURACY_TASKS),
        BudgetKind("perplexity_ratio", "perplexity ratio", "×", "below", ("text-generation",), 1),
        BudgetKind(
            "embedding_cosine", "cosine to reference", "", "above", ("feature-extraction",), 1
        ),
        BudgetKind("flip_ratio", "flips", "", "below", ACCURACY_TASKS),
        BudgetKind("kl_mean_nats", "KL, mean", "nats", "below", KL_TASKS),
        BudgetKind("kl_p999_nats", "KL, p99.9", "nats", "below", KL_TASKS, veto=True),
        BudgetKind(
            "worst_slice_drop_points", "worst slice", "points", "below", ACCURACY_TASKS, veto=True
        ),
        BudgetKind(
            "worst_slice_perplexity_ratio",
            "worst slice",
            "×",
            "below",
            ("text-generation",),
            1,
            veto=True,
        ),
        BudgetKind("latency_ratio", "latency ratio (host)", "×", "below"),
        BudgetKind("latency_p95_ms", "latency p95", "ms", "below"),
        BudgetKind("disk_size_ratio", "size on disk, ratio", "×", "below"),
        BudgetKind("disk_size_mib", "size on disk", "MiB", "below"),
        BudgetKind("download_size_ratio", "download size, ratio", "×", "below"),
        BudgetKind("download_size_mib", "download size", "MiB", "below"),
        BudgetKind("peak_memory_mib", "peak memory", "MiB", "below"),
        BudgetKind(DEVICE_FAILURES, "devices that fail", "devices", "below"),
        BudgetKind("device_difference", "device float32", "", "below"),
        BudgetKind("device_flip_ratio", "flips a device adds", "", "below", KL_TASKS, veto=True),
        BudgetKind("device_cosine_drop", "cosine a device loses", "", "below", veto=True),
        BudgetKind("instruction_ratio", "instructions, ratio", "×", "below"),
        BudgetKind("board_memory_mib", "board memory", "MiB", "below"),
    )
}


@dataclass(frozen=True)
class Budget:
    """A limit on one metric."""

    kind: BudgetKind
    limit: float


class Budgets(Table):
    """Limits; a metric that is left out is reported and not judged."""

    accuracy_drop_points: float | None = Field(
        None, gt=0, description="Percentage points of accuracy (or recall@1) that may be lost."
    )
    perplexity_ratio: float | None = Field(
        None, gt=1, description="Perplexity of the candidate over the reference's."
    )
    embedding_cosine: float | None = Field(
        None, gt=-1, lt=1, description="Mean cosine between candidate and reference embeddings."
    )
    flip_ratio: float | None = Field(
        None, gt=0, le=1, description="Share of answers (or retrievals) unlike the reference's."
    )
    kl_mean_nats: float | None = Field(
        None,
        gt=0,
        description="Mean KL divergence of the answers' distribution, an answer or token.",
    )
    kl_p999_nats: float | None = Field(
        None, gt=0, description="Veto: 99.9th percentile of the KL divergence, as observed."
    )
    worst_slice_drop_points: float | None = Field(
        None,
        gt=0,
        description="Veto: accuracy lost in the worst class, or group of a --slice column.",
    )
    worst_slice_perplexity_ratio: float | None = Field(
        None, gt=1, description="Veto: perplexity ratio in the worst group of a --slice column."
    )
    latency_ratio: float | None = Field(
        None, gt=0, le=1, description="Latency over the float32 reference's, interleaved, here."
    )
    latency_p95_ms: float | None = Field(
        None, gt=0, description="Judged only where the machine has the target's ISA and features."
    )
    disk_size_ratio: float | None = Field(None, gt=0, description="Model files over reference's.")
    disk_size_mib: float | None = Field(None, gt=0, description="Model files, uncompressed.")
    download_size_ratio: float | None = Field(None, gt=0, description="Compressed, over reference.")
    download_size_mib: float | None = Field(None, gt=0, description="Model files, compressed.")
    peak_memory_mib: float | None = Field(
        None, gt=0, description="Peak resident memory of a process that runs one session."
    )
    device_failures: int = Field(
        0, ge=0, description="Devices of the profile on which the model may fail to run."
    )
    device_difference: float | None = Field(
        None,
        gt=0,
        description="Largest float32 difference between a device and this machine, over the RMS "
        "of the outputs where that is more than 1.",
    )
    device_flip_ratio: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Veto: share of answers (or tokens) unlike the float32 reference's on a "
        "device, less the same share here.",
    )
    device_cosine_drop: float | None = Field(
        None,
        gt=0,
        description="Veto: mean cosine to the float32 reference's outputs here, less on a device.",
    )
    instruction_ratio: float | None = Field(
        None, gt=0, description="Instructions over the float32 reference's, on emulated devices."
    )
    board_memory_mib: float | None = Field(
        None, gt=0, description="Smallest memory of a whole emulated board on which it runs."
    )

    @model_validator(mode="after")
    def _judges_something(self) -> Budgets:
        asked = [metric for metric in BUDGET_KINDS if metric != DEVICE_FAILURES]
        if all(getattr(self, metric) is None for metric in asked):
            raise ValueError("no budget is set, so nothing could ever fail; set at least one")
        return self

    def for_task(self, task: str) -> tuple[Budget, ...]:
        """The budgets that apply to `task`, in the order reports show them."""
        return tuple(
            Budget(kind, limit)
            for metric, kind in BUDGET_KINDS.items()
            if (limit := getattr(self, metric)) is not None
            and (kind.tasks is None or task in kind.tasks)
        )
