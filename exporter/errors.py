"""Every error this tool raises on purpose, and the exit code each one means.

ExporterError             4  the tool itself failed
├── InputError            2  something the user gave is wrong
│   ├── ProfileError         a target profile or a recipe
│   ├── ModelError           a checkpoint, a module or an .onnx file
│   ├── DataError            examples, columns, labels, splits
│   │   └── TooFewPositions  too little data for a Hessian
│   ├── OutputError          the place the result should go to
│   ├── ArtifactError        a finished artifact that cannot be read or trusted
│   ├── DeviceMissing        a device that cannot be used here, and what would make it usable
│   └── Interrupted          stopped by the user; the next run resumes
├── ExportError           4  a model that should export did not
│   ├── ParityError          it exported, and computes something else
│   └── RuntimeTooOld        the onnxruntime that the profile names would refuse the file
├── RecoveryError         4  a pruned model that should be trained cannot be
├── QuantizeError         4  a quantization scheme failed or silently did nothing
└── DeviceError           4  a device, or a process measuring on it, failed
    ├── DeviceTimeout        it did not finish in time; it was stopped
    ├── DeviceLost           the connection to it broke
    ├── DeviceKilled         what ran on it was killed: out of memory, as a rule
    ├── DeviceCpu            its CPU lacks an instruction (SIGILL)
    ├── DeviceDisk           its disk is full
    └── DeviceRefused        its runtime does not take the model: an operator, a type, an opset
"""

from __future__ import annotations

EXIT_PASS = 0
EXIT_FAIL = 1
EXIT_USAGE = 2
EXIT_INCONCLUSIVE = 3
EXIT_TOOL = 4


class ExporterError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the CLI returns."""

    exit_code = EXIT_TOOL


class InputError(ExporterError):
    """Something the user gave is wrong.

    The message says place, rule, value and remedy, in that order:
    `targets/mobile.toml: workload.batch must be ≥ 1, got 0; set how many inputs run at once.`
    """

    exit_code = EXIT_USAGE

    def __init__(self, place: str, rule: str, *, got: object = None, remedy: str) -> None:
        self.place = place
        self.rule = rule
        self.got = got
        self.remedy = remedy
        value = "" if got is None else f", got {got}"
        super().__init__(f"{place}: {rule}{value}; {remedy}")

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.place, self.rule, self.got, self.remedy))


def _rebuild(kind: type[InputError], place: str, rule: str, got: object, remedy: str) -> InputError:
    return kind(place, rule, got=got, remedy=remedy)


class ProfileError(InputError):
    """A target profile or a recipe is malformed."""


class ModelError(InputError):
    """A checkpoint, a module or an .onnx file cannot be used."""


class DataError(InputError):
    """Data, columns, labels or splits cannot be used."""


class TooFewPositions(DataError):
    """Data says too little for a matrix that has to be inverted."""


class OutputError(InputError):
    """The result cannot be written where it was asked for."""


class ArtifactError(InputError):
    """A finished artifact cannot be read, or is not what its manifest says."""


class DeviceMissing(InputError):
    """A device cannot be used here; the remedy is the command that makes it usable."""


class Interrupted(InputError):
    """The user stopped the run; finished stages are kept and the next run resumes."""


class ExportError(ExporterError):
    """A model that should have exported did not."""


class ParityError(ExportError):
    """The exported graph computes something else than the module it came from."""


class RuntimeTooOld(ExportError):
    """A file asks for more than the onnxruntime that the profile names."""


class RecoveryError(ExporterError):
    """A pruned model that should be fine-tuned answers what no training can start from."""


class QuantizeError(ExporterError):
    """A quantization scheme failed, or did not put the planned kernels into the graph."""


class DeviceError(ExporterError):
    """A device, or the process that measures on it, failed."""


class DeviceTimeout(DeviceError):
    """A device did not finish in time, and what ran on it was stopped."""


class DeviceLost(DeviceError):
    """The connection to a device broke."""


class DeviceKilled(DeviceError):
    """What ran on a device was killed (137), as a rule because its memory was full."""


class DeviceCpu(DeviceError):
    """A device's CPU lacks an instruction that the runtime needs (SIGILL)."""


class DeviceDisk(DeviceError):
    """A device's disk is full."""


class DeviceRefused(DeviceError):
    """A device's runtime does not load or run the model."""
