"""Device: something that runs a model and tells what it answered and what that cost.

A kind of device is one file in this room with one `DeviceKind`, and one line in `registry`. Cost
is told in the one unit that the device can honestly give: milliseconds on real hardware,
instructions under an emulator that counts them. Neither is ever told as the other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from exporter.models.examples import Feeds, Outputs
from exporter.progress import Progress
from exporter.target import Workload

# "ms": real time on the device. "instructions": counted under emulation. "guest_s": seconds of a
# whole emulated machine whose clock counts instructions. "throttled_ms": time in a browser that
# was slowed down on purpose. None: the device gives answers and no cost.
CostUnit = Literal["ms", "instructions", "guest_s", "throttled_ms"]


@dataclass(frozen=True)
class Traits:
    """What a device is.

    Attributes:
        name: as it is asked for, such as `arm64:cortex-a76`.
        title: for people, such as `Cortex-A76 (QEMU user mode)`.
        isa: instruction set in a profile's words; "wasm" in a browser.
        features: CPU features in a profile's words, as far as they are known.
        emulated: True when it is not the hardware itself.
        cost: the unit its cost is told in.
    """

    name: str
    title: str
    isa: str
    features: tuple[str, ...] = ()
    emulated: bool = False
    cost: CostUnit | None = None


@dataclass(frozen=True)
class Missing:
    """Something a device needs and this machine lacks.

    Attributes:
        what: such as `the emulator qemu-aarch64`.
        remedy: the command that gets it, such as `exporter devices install arm64`.
        installable: True when `DeviceKind.install` gets it, without root.
    """

    what: str
    remedy: str
    installable: bool = False


@dataclass(frozen=True)
class Job:
    """What a device is asked to do with one model, in one process: load, cost, answer.

    Attributes:
        model: directory with model.onnx, its external data and session.json if any.
        calls: complete feeds, batch axis in front; each is run once and its outputs come back,
            all but those named `present*`.
        feeds: one batch of the workload, which is run for its cost. None: no cost is taken.
            Language models with a cache take `input_ids` (batch, length) as the prompt, read it
            and write `workload.decode_tokens` greedily.
        workload: the shapes of `feeds`.
        repeats: times that the workload is run for its cost, after one that is discarded, or as
            many as code needs that is compiled while it runs (`warm_up_runs` of the facts).
        threads: of the session.
    """

    model: Path
    calls: tuple[Feeds, ...] = ()
    feeds: Feeds | None = None
    workload: Workload = field(default_factory=Workload)
    repeats: int = 3
    threads: int = 1

    @property
    def model_mib(self) -> float:
        """Size of the model's files: what tells candidate and reference apart in a log."""
        return sum(p.stat().st_size for p in self.model.glob("model.onnx*")) / (1 << 20)


@dataclass(frozen=True)
class Ran:
    """What came back from a device.

    Attributes:
        outputs: one a call of the job, in order.
        tokens: (batch, 1 + decode_tokens) that a language model wrote after the prompt, or None.
        logits: (1 + decode_tokens, batch, vocabulary) they were chosen from, or None.
        costs: phase ("run", or "prefill" and "decode") -> cost of each repeat, in the unit of the
            device's traits; "decode" is for one token. Empty where the device gives none.
        load_cost: of opening the session, in the same unit.
        classes: phase -> class of instructions ("all", "dot_product", "matrix_multiply",
            "saturating_pair": two products added in int16) -> mean count a repeat; empty on
            devices that do not count.
        heap_mib: peak of the C heap while the model was open, without the emulator's own.
        peak_mib: peak resident memory of the process (VmHWM); None where an emulator is in it.
        runtime: version of onnxruntime there.
        facts: whatever else the device tells of itself, JSON-ready.
    """

    outputs: tuple[Outputs, ...] = ()
    tokens: Any = None
    logits: Any = None
    costs: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    load_cost: float | None = None
    classes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    heap_mib: float | None = None
    peak_mib: float | None = None
    runtime: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


class Device(ABC):
    """A device that is ready to be used.

    Attributes:
        limits_memory: True when a model that needs more than the device has is killed there, so
            that the smallest memory it runs with can be found.
    """

    traits: Traits
    limits_memory = False

    @property
    def identity(self) -> str:
        """What besides its traits decides its answers and costs, such as versions and settings."""
        return ""

    @abstractmethod
    def run(self, job: Job, *, timeout_s: float, progress: Progress | None = None) -> Ran:
        """Do `job` there. Nothing of it is left on the device afterwards, however it ends.

        Raises:
            DeviceError: the class says how it ended; see `exporter.errors`.
        """


class DeviceKind(ABC):
    """A kind of device, found by the part of a name before the colon.

    Attributes:
        name: such as `arm64`.
        summary: one line for `exporter devices`.
        options: what may stand after the colon, the default first; () when nothing or anything may.
        pattern: what is asked for where anything may, such as `adb:SERIAL`. What lacks here is the
            client alone then: whether the device is there shows when it is asked.
    """

    name: str
    summary: str
    options: tuple[str, ...] = ()
    pattern: str = ""

    @abstractmethod
    def missing(self, option: str) -> tuple[Missing, ...]:
        """What this machine lacks to use it; () when it is usable. Quick, and without a network."""

    @abstractmethod
    def open(self, option: str, settings: Mapping[str, Any]) -> Device:
        """The device, ready.

        Args:
            option: what stood after the colon; "" takes the default.
            settings: of the profile's entry, such as `memory_mib`; unknown ones are ignored.

        Raises:
            DeviceMissing: it is not usable here.
        """

    def install(self, progress: Progress) -> None:  # noqa: B027  (most have nothing to fetch)
        """Fetch what can be fetched without root into the user's cache; done twice, done once.

        Raises:
            DeviceError: a download failed or is not what its hash says.
            DeviceMissing: something only root can install is needed.
        """
