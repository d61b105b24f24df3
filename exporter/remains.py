"""What of a finished run is still on this machine: its stages in the cache, found by their keys."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.artifact import MANIFEST, Artifact
from exporter.cache import Cache
from exporter.errors import ArtifactError
from exporter.evidence import fact
from exporter.graph.model import OnnxModel
from exporter.models.examples import Development, Examples, Test, load_examples


@dataclass(frozen=True)
class Remains:
    """What of a finished run is still on this machine; None for what is not.

    Attributes:
        candidate: the model of the artifact.
        reference: the original as a float32 graph.
        quality_reference: the model that quality is judged against.
        examples: of the test split; `development`: of that one.
    """

    candidate: OnnxModel
    reference: OnnxModel | None
    quality_reference: OnnxModel | None
    examples: Examples[Test] | None
    development: Examples[Development] | None


def remains(artifact: Artifact, cache: Cache, reference: Path | None) -> Remains:
    """Look for what the artifact's manifest names, by content, in the cache.

    Args:
        reference: directory of the float32 model.onnx; None takes the cache's.

    Raises:
        ArtifactError: a key is no key, or `reference` holds no model.
    """

    def graph(name: str) -> OnnxModel | None:
        entry = cache.find("exported", _key(artifact, name))
        return OnnxModel(entry / "model") if entry else None

    def examples(name: str) -> Path | None:
        return cache.find("examples", _key(artifact, name))

    test = examples("test")
    # artifacts made before devices were asked do not name it
    development = examples("development") if "development" in _stages(artifact) else None
    given = None
    if reference is not None:
        given = OnnxModel(reference)
        if not given.path.is_file():
            raise ArtifactError(
                f"--reference {reference}",
                "must be a directory with a model.onnx",
                remedy="give the exported float32 model's directory.",
            )
    return Remains(
        OnnxModel(artifact.model_directory),
        given or graph("reference"),
        graph("quality_reference"),
        load_examples(test, Test) if test else None,
        load_examples(development, Development) if development else None,
    )


def _stages(artifact: Artifact) -> dict[str, Any]:
    """Names of stages and their keys, as the manifest tells them."""
    found = fact(artifact, "stages")
    return found if isinstance(found, dict) else {}


def _key(artifact: Artifact, name: str) -> str:
    """A stage's key in the manifest; nothing else may say where in the cache is looked."""
    key = fact(artifact, "stages", name)
    if not (isinstance(key, str) and re.fullmatch(r"[0-9a-f]{32}(\.[0-9]{1,6})?", key)):
        raise ArtifactError(
            f"{artifact.directory}/{MANIFEST}: stages.{name}",
            "must be 32 hex digits",
            got=repr(key)[:80],
            remedy="do not trust the artifact.",
        )
    return key
