"""Target and Workload: what a device demands of a model."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from exporter.budget import Budgets, Table
from exporter.errors import ProfileError
from exporter.recipe import Recipe
from exporter.toml import read_toml, validated


class Workload(Table):
    """The shapes that are timed."""

    batch: int = Field(1, ge=1, description="Inputs that run at once.")
    sequence_length: int = Field(128, ge=1, description="Tokens an encoder reads.")
    prompt_length: int = Field(128, ge=1, description="Tokens a language model is prompted with.")
    decode_tokens: int = Field(32, ge=1, description="Tokens a language model then writes.")


class Evidence(Table):
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


class DeviceEntry(Table):
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


class Target(Table):
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
