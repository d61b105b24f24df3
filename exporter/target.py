"""Target, Workload and Budget: what a device demands of a model."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from exporter.errors import ProfileError
from exporter.recipe import Recipe
from exporter.toml import read_toml, validated


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Workload(_Table):
    """The shapes that are timed."""

    batch: int = Field(1, ge=1, description="Inputs that run at once.")
    sequence_length: int = Field(128, ge=1, description="Tokens an encoder reads.")
    prompt_length: int = Field(128, ge=1, description="Tokens a language model is prompted with.")
    decode_tokens: int = Field(32, ge=1, description="Tokens a language model then writes.")


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
        BudgetKind("device_flip_ratio", "device flips", "", "below", KL_TASKS, veto=True),
        BudgetKind("device_cosine_drop", "device cosine", "", "below", veto=True),
        BudgetKind("instruction_ratio", "instructions, ratio", "×", "below"),
        BudgetKind("board_memory_mib", "board memory", "MiB", "below"),
    )
}


@dataclass(frozen=True)
class Budget:
    """A limit on one metric."""

    kind: BudgetKind
    limit: float


class Budgets(_Table):
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


class Evidence(_Table):
    """How sure a verdict has to be."""

    confidence: float = Field(
        0.95, ge=0.95, le=0.9999, description="One-sided; the intervals are proven from 0.95 on."
    )
    resamples: int = Field(2000, ge=200, le=100_000, description="Bootstrap resamples.")
    latency_rounds: int = Field(
        30,
        ge=5,
        le=10_000,
        description="Interleaved rounds before the first look.",
    )
    latency_seconds: float = Field(
        120, gt=0, le=86_400, description="After this long an undecided latency stays inconclusive."
    )


class DeviceEntry(_Table):
    """A device that the model is checked on before it ships."""

    name: str = Field(
        pattern=r"^[a-z][a-z0-9-]*(:\S+)?$",
        description="As `exporter devices` lists it, such as `arm64:cortex-a76`.",
    )
    required: bool = Field(
        False, description="Where it cannot be used, the verdict is INCONCLUSIVE."
    )
    examples: int = Field(12, ge=1, le=10_000, description="Development examples that it answers.")
    timeout_s: float = Field(900, gt=0, le=86_400, description="Of one run on it.")
    python: str | None = Field(
        None, description="Interpreter on a device that is reached over ssh or adb."
    )
    cpu: str | None = Field(None, description="Of a board, such as `cortex-a53`.")
    throttle: float | None = Field(
        None, ge=1, le=100, description="How many times slower a browser's CPU is made."
    )


ISAS = ("arm64", "x86-64")
FEATURES = {
    "arm64": ("neon", "fp16", "dotprod", "i8mm", "bf16", "sve"),
    "x86-64": ("avx2", "avx512", "avx512_vnni", "avx_vnni", "amx_int8", "avx512_bf16"),
}


# The first minor release of onnxruntime 1 whose operators are known (exporter.graph.releases).
OLDEST_RUNTIME = 16

# With any of these x86 adds products of int8 in int32.
VNNI = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


class Target(_Table):
    """A device profile."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    description: str
    isa: Literal["arm64", "x86-64"]
    features: tuple[str, ...] = Field((), description="Guaranteed on every device of this class.")
    threads: int = Field(1, ge=1, le=256)
    memory_mib: int = Field(ge=16, description="Memory the model may count on.")
    runtime: Literal["onnxruntime"] = "onnxruntime"
    runtime_version: str | None = Field(
        None,
        description="Oldest onnxruntime on these devices, such as 1.20; what it would refuse is "
        "not built. Default: the version installed here.",
    )
    format: Literal["onnx", "ort"] = Field(
        "onnx",
        description="File format that ships. ort: model.onnx, and beside it model.ort, optimized "
        "for the ISA, with the required_operators.config of a minimal build.",
    )
    workload: Workload = Workload()
    evidence: Evidence = Evidence()
    devices: tuple[DeviceEntry, ...] = Field((), description="Devices to check on.")
    budgets: Budgets
    recipe: Recipe

    @field_validator("runtime_version")
    @classmethod
    def _known_release(cls, value: str | None) -> str | None:
        if value is None:
            return None
        found = re.fullmatch(r"1\.(\d{1,3})(\.\d{1,3})?", value)
        if found is None:
            raise ValueError(f"must be a release of onnxruntime such as '1.20', not '{value}'")
        if int(found[1]) < OLDEST_RUNTIME:
            raise ValueError(
                f"must be 1.{OLDEST_RUNTIME} or later, not {value}: what earlier ones take is "
                "not known here"
            )
        return value

    @field_validator("features")
    @classmethod
    def _no_repeats(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(value))

    @field_validator("devices")
    @classmethod
    def _each_device_once(cls, value: tuple[DeviceEntry, ...]) -> tuple[DeviceEntry, ...]:
        names = [entry.name for entry in value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"device '{name}' stands twice; give it one entry")
        return value

    @model_validator(mode="after")
    def _known_features(self) -> Target:
        for feature in self.features:
            if feature not in FEATURES[self.isa]:
                raise ValueError(
                    f"feature '{feature}' is not one of {self.isa}'s "
                    f"({', '.join(FEATURES[self.isa])})"
                )
        return self

    @property
    def int8_may_saturate(self) -> bool:
        """True when the ISA floor adds u8×s8 pairs in saturating int16 (x86 without VNNI)."""
        return self.isa == "x86-64" and not VNNI & set(self.features)


def target_directory() -> Path:
    """Where the profiles that come with the tool lie: inside the wheel, else the checkout's."""
    package = Path(__file__).resolve().parent
    bundled = package / "_targets"
    return bundled if bundled.is_dir() else package.parent / "targets"


def target_names() -> list[str]:
    """Names of the profiles that come with the tool."""
    return sorted(path.stem for path in target_directory().glob("*.toml"))


def load_target(name: str | Path) -> Target:
    """A profile by name (`mobile`) or by path (`my/phone.toml`), validated.

    Raises:
        ProfileError: unknown name (closest ones offered), malformed file, broken rule.
    """
    text = str(name)
    if text.endswith(".toml") or "/" in text:
        return validated(Target, read_toml(Path(text)), place=text)
    if text in target_names():
        path = target_directory() / f"{text}.toml"
        return validated(Target, read_toml(path), place=f"targets/{text}.toml")
    close = difflib.get_close_matches(text, target_names(), n=2, cutoff=0.4)
    hint = f"did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
    raise ProfileError(
        "--target",
        f"unknown target '{text}'",
        remedy=f"{hint}known: {', '.join(target_names())}, or a path to a .toml file.",
    )
