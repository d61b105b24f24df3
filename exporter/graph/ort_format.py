"""ORT format: the graph as onnxruntime optimized it for one platform, for builds without a parser.

https://onnxruntime.ai/docs/performance/model-optimizations/ort-format-models.html. The file is
written by a session, as `onnxruntime.tools.convert_onnx_models_to_ort` does, because that tool
cannot be told to leave out the optimizers that `session.json` names. Beside it goes the list of
operators and types that a minimal build must hold.

Two conversions differ in bytes: onnxruntime writes the table of kernel types at the head in the
order of a hash map. From the graph on they are equal; `graph_sha256` is over that part.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from exporter.errors import ExportError, ModelError
from exporter.graph.model import OnnxModel
from exporter.graph.quiet import quiet
from exporter.graph.session import OnnxRun, make_session, open_run, read_session, session_options
from exporter.models.examples import Feeds, Outputs

ORT_FILE = "model.ort"
OPERATORS_FILE = "required_operators.config"

Platform = Literal["arm", "amd64"]
PLATFORMS: dict[str, Platform] = {"arm64": "arm", "x86-64": "amd64"}

# A flatbuffer's offsets are 32 bits with sign, and weights lie inside the file.
LARGEST_BYTES = 2**31 - 1

# How far model.ort may answer from model.onnx: float32 differs by the order of its sums, and the
# rounding of int8 can turn such a difference into a whole step.
FLOAT_DIFFERENCE = 1e-4  # largest difference over the RMS of the output
INTEGER_COSINE = 0.999

_HEADER = (
    "# Operators and types of model.ort, for a minimal build of onnxruntime:\n"
    "# build.sh --minimal_build --include_ops_by_config required_operators.config "
    "--enable_reduced_operator_type_support\n"
)


@dataclass(frozen=True)
class OrtFormat:
    """A model.ort that was proven to answer like its model.onnx.

    Attributes:
        platform: that its graph was optimized for.
        size_bytes: of model.ort, which holds its weights.
        operators: kinds of operators that a minimal build must hold.
        graph_sha256: over everything but the table of kernel types.
        difference: largest from model.onnx over the outputs' RMS, on one batch of the workload.
        cosine: smallest of an output's, likewise.
    """

    platform: Platform
    size_bytes: int
    operators: int
    graph_sha256: str
    difference: float
    cosine: float

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def add_ort_format(model: OnnxModel, platform: Platform, feeds: Feeds, *, exact: bool) -> OrtFormat:
    """Write model.ort and required_operators.config beside model.onnx, proven to answer alike.

    Args:
        feeds: one batch, which both files answer here.
        exact: the model computes in float32, so that answers may differ only by rounding.

    Raises:
        ExportError: it cannot be converted, or answers otherwise; neither file is left behind.
    """
    place = f"{model.path}: {ORT_FILE} for {platform}"
    with tempfile.TemporaryDirectory(prefix=".ort-", dir=model.directory) as scratch:
        path, operators = convert(model, platform, Path(scratch))
        difference, cosine = prove(model, path, feeds, exact=exact, place=place)
        found = OrtFormat(
            platform,
            path.stat().st_size,
            len(operator_names(operators.read_text(encoding="utf-8"))),
            _graph_hash(path),
            difference,
            cosine,
        )
        path.replace(model.directory / ORT_FILE)
        operators.replace(model.directory / OPERATORS_FILE)
    return found


def convert(model: OnnxModel, platform: Platform, out: Path) -> tuple[Path, Path]:
    """Write model.ort and required_operators.config into `out`, unproven.

    Raises:
        ExportError: onnxruntime does not convert the model.
    """
    from onnxruntime.tools.ort_format_model import create_config_from_models

    place = f"{model.path}: {ORT_FILE} for {platform}"
    size = sum(path.stat().st_size for path in model.weight_files())
    if size > LARGEST_BYTES:
        raise ExportError(
            f"{place}: weights must be below 2 GiB in ORT format, got {size / 2**30:.1f} GiB; "
            'ship format = "onnx", or a smaller candidate.'
        )
    path, operators = out / ORT_FILE, out / OPERATORS_FILE
    options = session_options(1)
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.save_model_format", "ORT")
    # Arm multiplies int8 by int8; on x86 such pairs are turned into uint8 by int8.
    options.add_session_config_entry("session.qdqisint8allowed", "1" if platform == "arm" else "0")
    # Blocked layouts of convolutions are for the CPU that converts, and for x86 only.
    left_out = () if platform == "amd64" else ("NchwcTransformer",)
    try:
        make_session(model.path, options, (*read_session(model), *left_out))
        with quiet():
            create_config_from_models([path], operators, True)
    except (ModelError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise ExportError(
            f"{place}: onnxruntime does not convert it: {error}; "
            'ship format = "onnx", or choose another candidate.'
        ) from error
    lines = operators.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.strip() and not line.startswith("#")]
    operators.write_text(_HEADER + "".join(kept), encoding="utf-8")
    return path, operators


def prove(
    model: OnnxModel, ort: Path, feeds: Feeds, *, exact: bool, place: str
) -> tuple[float, float]:
    """Largest difference over RMS and smallest cosine of what two files answer here.

    Raises:
        ExportError: model.ort does not run here, or answers otherwise than model.onnx.
    """
    try:
        run = OnnxRun(make_session(ort, session_options(1), ()), str(ort))
        theirs = run(feeds)
    except ModelError as error:
        raise ExportError(f"{place}: does not run on this machine: {error}") from error
    ours = open_run(model)(feeds)
    difference, cosine = 0.0, 1.0
    for name, answer in ours.items():
        # a choice of classes or tokens has no rounding
        whole = not np.issubdtype(answer.dtype, np.floating)
        if whole and not np.array_equal(answer, theirs[name]):
            raise ExportError(f"{place}: output {name} is not what model.onnx answers")
    for name, expected in _floats(ours).items():
        got = theirs[name].astype(np.float64)
        if got.shape != expected.shape or not np.isfinite(got).all():
            raise ExportError(f"{place}: output {name} has another shape or is not finite")
        apart = _difference(expected, got)
        alike = _cosine(expected, got)
        if exact and apart > FLOAT_DIFFERENCE:
            raise ExportError(
                f"{place}: must answer like model.onnx within {FLOAT_DIFFERENCE:g} of the RMS, "
                f'got {apart:.3g} in {name}; ship format = "onnx".'
            )
        flipped = _flipped(expected, got)
        if not exact and (alike <= INTEGER_COSINE or flipped):
            raise ExportError(
                f"{place}: must answer like model.onnx with a cosine above {INTEGER_COSINE:g} "
                f"and the same top answers, got {alike:.6g} and {flipped} other answers in "
                f'{name}; ship format = "onnx", or choose another candidate.'
            )
        difference, cosine = max(difference, apart), min(cosine, alike)
    return difference, cosine


def operator_names(config: str) -> tuple[str, ...]:
    """`domain:operator` of everything in a required_operators.config, each once."""
    found = set()
    for line in config.splitlines():
        if not line or line.startswith("#"):
            continue
        domain, _, operators = line.split(";", 2)
        depth, name = 0, ""
        for letter in operators + ",":
            depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(letter, 0)
            if letter == "," and not depth:
                found.add(f"{domain}:{name}")
                name = ""
            elif not depth and letter not in "}]":
                name += letter
    return tuple(sorted(found))


def _floats(outputs: Outputs) -> dict[str, NDArray[np.float64]]:
    return {
        name: array.astype(np.float64)
        for name, array in outputs.items()
        if np.issubdtype(array.dtype, np.floating)
    }


def _difference(expected: NDArray[np.float64], got: NDArray[np.float64]) -> float:
    rms = float(np.sqrt(np.mean(expected**2)))
    apart = float(np.abs(expected - got).max(initial=0.0))
    return apart / rms if rms else apart


def _cosine(expected: NDArray[np.float64], got: NDArray[np.float64]) -> float:
    norms = float(np.linalg.norm(expected) * np.linalg.norm(got))
    return float((expected * got).sum() / norms) if norms else 1.0


def _flipped(expected: NDArray[np.float64], got: NDArray[np.float64]) -> int:
    """Rows with another largest value, where the first led by more than rounding explains."""
    if expected.ndim < 2 or expected.shape[-1] < 2:
        return 0
    rows, others = (a.reshape(-1, a.shape[-1]) for a in (expected, got))
    two = np.sort(rows, axis=-1)[:, -2:]
    lead = two[:, 1] - two[:, 0]
    noise = 2 * np.sqrt(np.mean((rows - others) ** 2, axis=-1))
    return int(((rows.argmax(-1) != others.argmax(-1)) & (lead > noise)).sum())


def _graph_hash(path: Path) -> str:
    """SHA-256 from the graph's table on, which is written last before the kernel types."""
    from onnxruntime.tools.ort_format_model.ort_model_processor import fbs

    data = path.read_bytes()
    model = fbs.InferenceSession.InferenceSession.GetRootAs(bytearray(data), 0).Model()
    return hashlib.sha256(data[model._tab.Pos :]).hexdigest()  # flatbuffers offers no other way
