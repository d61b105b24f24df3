"""Compare two artifacts: may the new one replace the old one, and what changed between them?"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.artifact import MANIFEST, Artifact, load_artifact
from exporter.cache import sha256_file
from exporter.devices.host import host_description
from exporter.errors import ArtifactError, InputError
from exporter.evidence import model_config, read_measurements, read_scores, refusing
from exporter.graph.model import OnnxModel
from exporter.judge.latency import rounds_for
from exporter.judge.measure import Measurements, measure
from exporter.judge.paired import common_examples, judge_quality_regression
from exporter.judge.regression import judge_cost_measured, judge_cost_regression
from exporter.judge.sequential import OPENINGS
from exporter.models.scores import Scores
from exporter.models.tasks import get_task
from exporter.progress import Progress, Silent
from exporter.report.comparison import Change, Compared, Comparison
from exporter.ship.bundle import EVIDENCE, MEASUREMENTS
from exporter.stages import workload_feeds
from exporter.target import Target
from exporter.toml import validated

TOLERANCE = 0.05
CANDIDATE_SCORES = f"{EVIDENCE}/candidate.jsonl"
# Facts about the machine that are no property of it, or follow from others.
_PASSING = ("load_1min", "clock_mhz", "reference_drift")


@dataclass(frozen=True)
class _Side:
    """One artifact and its evidence, hashes proven."""

    artifact: Artifact
    target: Target
    scores: Scores
    measurements: Measurements

    def fact(self, *path: str) -> Any:
        """An entry of the manifest; None where there is none."""
        value: Any = self.artifact.manifest
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    @property
    def model_hashes(self) -> dict[str, Any]:
        files = self.artifact.manifest["files"]
        return {n: entry["sha256"] for n, entry in files.items() if n.startswith("model/")}

    @property
    def runtime(self) -> Any:
        return self.fact("versions", "onnxruntime"), self.fact("versions", "onnxruntime-genai")


def compare(
    old: Path | str,
    new: Path | str,
    *,
    tolerance: float = TOLERANCE,
    measure: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Say whether artifact `new` may replace artifact `old`; nothing is written.

    Margins and confidence are those of the new artifact's profile.

    Args:
        tolerance: share by which time, size and memory may grow.
        measure: time both here, interleaved, instead of deriving it from the evidence.

    Raises:
        ArtifactError: one is no artifact, a file differs from its manifest, or they are of
            different tasks.
    """
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise InputError(
            "--tolerance",
            "must be a share of at least 0",
            got=tolerance,
            remedy="such as 0.05 for 5 %.",
        )
    before, after = _side(old), _side(new)
    if before.scores.task != after.scores.task:
        raise ArtifactError(
            str(new),
            f"must be of the same task as {old} ({before.scores.task})",
            got=after.scores.task,
            remedy="compare artifacts of one model.",
        )
    same = before.model_hashes == after.model_hashes and before.runtime == after.runtime
    origins = _origins(before, after)
    place = f"{old} and {new}"
    with refusing(place):
        judgements = judge_quality_regression(
            before.scores,
            after.scores,
            after.target,
            same=same,
            same_reference=_one_original(before, after),
        )
    if measure and not same:
        timed = _measured(before, after, progress or Silent())
        judgements += judge_cost_measured(timed, tolerance, after.target.evidence)
    else:
        with refusing(place):
            judgements += judge_cost_regression(
                before.measurements,
                after.measurements,
                tolerance,
                after.target.evidence,
                same=same,
                apart=_apart(before, after),
                origins=origins,
            )
    with refusing(place):
        both = common_examples(before.scores, after.scores)
        return Comparison(
            _compared(before),
            _compared(after),
            tuple(judgements),
            tuple(_changes(before, after)),
            tolerance,
            after.target.evidence.confidence,
            len(both.new),
            tuple(_notes(before, after, len(both.new))),
        )


def _side(directory: Path | str) -> _Side:
    artifact = load_artifact(directory)
    place = f"{directory}/{MANIFEST}"
    measurements = f"{EVIDENCE}/{MEASUREMENTS}"
    for name in (CANDIDATE_SCORES, measurements):
        if name not in artifact.manifest["files"]:
            raise ArtifactError(place, f"must name {name}", remedy="export it again.")
    target = validated(Target, artifact.manifest.get("target") or {}, place=f"{place}: target")
    scores = read_scores(artifact, "candidate")
    if not len(scores):
        raise ArtifactError(
            f"{directory}/{CANDIDATE_SCORES}", "must score an example", remedy="export it again."
        )
    return _Side(artifact, target, scores, read_measurements(artifact))


def _measured(old: _Side, new: _Side, progress: Progress) -> Measurements:
    """Both models in turns on this machine, under the new artifact's workload."""
    from exporter.models.load import preprocessor_from

    model = new.artifact.model_directory
    task = get_task(new.scores.task)
    preprocessor = preprocessor_from(model, task.name)
    if preprocessor is None:
        raise ArtifactError(
            str(model),
            "must hold a tokenizer or an image processor to be timed",
            remedy="compare without --measure.",
        )
    config = model_config(new.artifact)
    target = new.target
    return measure(
        OnnxModel(old.artifact.model_directory),
        OnnxModel(model),
        workload_feeds(task, target, config, preprocessor, None),
        target.workload,
        threads=target.threads,
        rounds=rounds_for(target, host_description()),
        openings=OPENINGS,
        progress=progress,
    )


def _apart(old: _Side, new: _Side) -> list[str]:
    """Why what was measured at two times cannot be compared."""
    a, b = old.measurements, new.measurements
    sides: list[tuple[str, Any, Any]] = [
        ("on other CPUs", a.host.get("cpu"), b.host.get("cpu")),
        ("with other workloads", a.workload, b.workload),
        ("with other numbers of threads", a.threads, b.threads),
        ("with other versions of onnxruntime", old.runtime, new.runtime),
    ]
    return [f"they were measured {what}" for what, before, after in sides if before != after]


def _origins(old: _Side, new: _Side) -> list[str]:
    """Why the float32 files that they were timed against are not the same; empty when they are."""
    if not _one_source(old, new):
        return ["they were made from different originals"]
    a, b = old.fact("reference", "sha256"), new.fact("reference", "sha256")
    if a is None or b is None:
        return ["it is not recorded that they were timed against the same float32 file"]
    return [] if a == b else ["they were timed against different float32 files of one original"]


def _one_source(old: _Side, new: _Side) -> bool:
    """True when both were made from one original, however it was exported."""
    return any(
        old.fact(*path) is not None and old.fact(*path) == new.fact(*path)
        for path in (("reference", "sha256"), ("stages", "reference"), ("source", "sha256"))
    )


def _one_original(old: _Side, new: _Side) -> bool:
    """True when both cosines are to the same model, which recovery may have trained on."""
    a, b = old.fact("stages", "quality_reference"), new.fact("stages", "quality_reference")
    plain = [s.fact("stages", "reference") == q for s, q in ((old, a), (new, b))]
    return a == b or (all(plain) and _one_source(old, new))


def _notes(old: _Side, new: _Side, count: int) -> Iterator[str]:
    total = (len(old.scores), len(new.scores))
    if count and total != (count, count):
        yield (
            f"Quality is compared on the {count:,} test examples that both were scored on: "
            f"{total[0]:,} of the old artifact, {total[1]:,} of the new one."
        )
    if old.measurements.host.get("cpu") != new.measurements.host.get("cpu"):
        yield "The two answered their test examples on different CPUs; int8 answers depend on it."
    if new.scores.task == "feature-extraction" and not _one_original(old, new):
        yield (
            "They were judged against different originals: the cosine to the original is not "
            "compared, and stored embeddings of the old model may not fit the new one."
        )
    if new.fact("verdict") != "PASS":
        yield f"The new artifact's own verdict, against its original, is {new.fact('verdict')}."


def _compared(side: _Side) -> Compared:
    directory = side.artifact.directory
    return Compared(
        str(directory),
        directory.resolve().name,
        side.scores.task,
        side.target.name,
        str(side.fact("verdict")),
        sha256_file(directory / MANIFEST),
    )


def _changes(old: _Side, new: _Side) -> Iterator[Change]:
    """What differs in how the two came to be, section by section."""
    before, after = _sections(old), _sections(new)
    for section in after:
        a, b = _flat(before[section]), _flat(after[section])
        for name in dict.fromkeys([*a, *b]):
            if a.get(name) != b.get(name):
                yield Change(section, name, a.get(name), b.get(name))


def _sections(side: _Side) -> dict[str, Any]:
    target = {k: v for k, v in (side.fact("target") or {}).items() if k != "recipe"}
    host = {k: v for k, v in side.measurements.host.items() if k not in _PASSING}
    tool = side.fact("tool") or {}
    return {
        "model": {"files": _model_hash(side)},
        "recipe": side.fact("candidate"),
        "target": target,
        "source": side.fact("source"),
        "data": side.fact("data"),
        "seed": {"seed": side.fact("seed")},
        "code": tool,
        "versions": side.fact("versions"),
        "machine": host,
    }


def _model_hash(side: _Side) -> str:
    """One SHA-256 over the names and hashes of the model's files."""
    lines = "".join(f"{name}\0{value}\n" for name, value in sorted(side.model_hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _flat(value: Any, above: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots; lists stay whole."""
    if not isinstance(value, Mapping):
        return {} if value is None else {above or "value": value}
    out: dict[str, Any] = {}
    for key, inner in value.items():
        out |= _flat(inner, f"{above}.{key}" if above else str(key))
    return out
