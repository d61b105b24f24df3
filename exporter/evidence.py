"""Reading what an artifact ships, whoever made it: what is no evidence is refused by name.

Nothing here trusts a file to be what an honest run writes. Whatever a malformed one raises on its
way becomes an ArtifactError, and no size it claims is allocated before it was held against limits.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from exporter.artifact import MANIFEST, Artifact, strict_json
from exporter.errors import ArtifactError
from exporter.judge.measure import Measurements
from exporter.judge.reading import Reading, readings_from_json
from exporter.models.scores import EVIDENCE_ARRAYS, Scores, load_scores
from exporter.ship.bundle import DEVICES, EVIDENCE, MEASUREMENTS

# What hostile numbers raise on their way through readers, statistics and templates.
IMPOSSIBLE = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    MemoryError,
    EOFError,
    zlib.error,
    struct.error,
)


@contextmanager
def refusing(place: str, rule: str = "must be evidence that can be judged") -> Iterator[None]:
    """Turn what impossible content raises into a refusal of `place`.

    Raises:
        ArtifactError: in place of anything in IMPOSSIBLE.
    """
    try:
        yield
    except IMPOSSIBLE as error:
        raise ArtifactError(
            place,
            rule,
            got=f"{type(error).__name__}: {error}"[:300],
            remedy="export again, or do not trust it.",
        ) from error


def read_json(artifact: Artifact, name: str) -> Any:
    """The content of one JSON file of an artifact.

    Raises:
        ArtifactError: it is no such file, or other readers would understand it otherwise.
    """
    try:
        return strict_json(read_bytes(artifact, name).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(
            name, "must be valid JSON", got=str(error), remedy="export again."
        ) from error


def read_bytes(artifact: Artifact, name: str) -> bytes:
    """The bytes of one file of an artifact.

    Raises:
        ArtifactError: it cannot be read, or is no file: a pipe would never end.
    """
    path = artifact.directory / name
    try:
        if not path.is_file():
            raise ArtifactError(name, "is missing, or no file", remedy="export again.")
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(
            name, "cannot be read", got=error.strerror, remedy="change its rights."
        ) from error


def read_scores(artifact: Artifact, name: str) -> Scores:
    """The scores of "reference" or "candidate" that ship.

    Raises:
        ArtifactError: they are malformed, or hold what is no evidence.
    """
    return load_scores(artifact.directory / EVIDENCE, name, only=EVIDENCE_ARRAYS)


def read_measurements(artifact: Artifact) -> Measurements:
    """The times, sizes and peaks that ship.

    Raises:
        ArtifactError: they are malformed, or no sizes and peaks at all.
    """
    name = f"{EVIDENCE}/{MEASUREMENTS}"
    data = read_json(artifact, name)
    with refusing(name, "must hold measurements"):
        found = Measurements.from_json(data)
        for side in ("reference_size", "candidate_size"):
            size = getattr(found, side)
            for what in ("disk_bytes", "download_bytes"):
                _counted(f"{name}: {side}.{what}", getattr(size, what), whole=True)
        if not found.candidate_memory:
            raise ArtifactError(
                f"{name}: candidate_memory", "must hold a peak", remedy="export again."
            )
        for memory in (found.reference_memory, *found.candidate_memory):
            _counted(f"{name}: peak_mib", memory.peak_mib)
    return found


def read_devices(artifact: Artifact) -> tuple[Reading, ...]:
    """What the target's devices told, as it ships; () where none was listed.

    Raises:
        ArtifactError: it is malformed.
    """
    name = f"{EVIDENCE}/{DEVICES}"
    if name not in artifact.manifest["files"]:
        return ()
    data = read_json(artifact, name)
    with refusing(name, "must hold what devices told"):
        return readings_from_json(data)


def model_config(artifact: Artifact) -> dict[str, Any]:
    """The configuration beside the model; {} where there is none."""
    name = f"{artifact.model_directory.name}/config.json"
    found = read_json(artifact, name) if (artifact.directory / name).is_file() else {}
    return found if isinstance(found, dict) else {}


def fact(artifact: Artifact, *path: str) -> Any:
    """What the manifest must say.

    Raises:
        ArtifactError: it does not.
    """
    value: Any = artifact.manifest
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    if value is None:
        raise ArtifactError(
            f"{artifact.directory}/{MANIFEST}",
            f"must say {'.'.join(path)}",
            remedy="export it again.",
        )
    return value


def _counted(place: str, value: Any, *, whole: bool = False) -> None:
    """Refuse what is no amount of bytes or MiB."""
    number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and value > 0):
        raise ArtifactError(place, "must be more than nothing", got=value, remedy="export again.")
