"""What an artifact claims, derived again from the evidence it ships.

An honest run derives its judgements from scores and measurements, its report from the judgements,
and every page from the report. Each link is made again here and compared. Figures may differ by
rounding between machines; words and verdicts may not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from exporter.artifact import MANIFEST, Artifact
from exporter.describing import observed, phases_of, slice_rows
from exporter.errors import ArtifactError, InputError
from exporter.evidence import (
    IMPOSSIBLE,
    read_bytes,
    read_devices,
    read_json,
    read_measurements,
    read_scores,
)
from exporter.graph.model import OnnxModel
from exporter.graph.ort_format import OPERATORS_FILE, ORT_FILE
from exporter.judge.conditions import remarks
from exporter.judge.gate import cautions, judge, not_judged
from exporter.judge.measure import Measurements
from exporter.judge.reading import Reading, readings_to_json
from exporter.judge.verdict import Judgement, overall
from exporter.mismatches import Mismatch, differences
from exporter.models.scores import Scores
from exporter.readings import readings_note
from exporter.report.document import Report
from exporter.report.render import render
from exporter.report.wording import explain, repeated
from exporter.ship.bundle import DEVICES, EVIDENCE, MEASUREMENTS
from exporter.ship.sbom import SBOM, sbom_hashes, sbom_libraries
from exporter.target import Target
from exporter.toml import validated

REPORT = "report.json"


@dataclass(frozen=True)
class _Evidence:
    """What the artifact's evidence comes to under the target in its manifest."""

    target: Target
    reference: Scores
    candidate: Scores
    measurements: Measurements
    readings: tuple[Reading, ...]
    judgements: tuple[Judgement, ...]


def check_claims(artifact: Artifact) -> tuple[tuple[Judgement, ...], list[Mismatch]]:
    """The judgements that the evidence gives, and every claim that does not follow from it."""
    try:
        evidence = _evidence(artifact)
    except (InputError, *IMPOSSIBLE) as error:
        return (), [_unreadable(artifact, error, EVIDENCE)]
    found = _manifest_claims(artifact, evidence)
    try:
        raw = read_json(artifact, REPORT)
        report = Report.from_json(raw)
        found += differences(REPORT, raw, report.to_json())
        found += _report_claims(artifact, report, evidence)
        found += _pages(artifact, report)
    except (InputError, *IMPOSSIBLE) as error:
        found.append(_unreadable(artifact, error, REPORT))
    return evidence.judgements, found


def _evidence(artifact: Artifact) -> _Evidence:
    reference, candidate = (read_scores(artifact, name) for name in ("reference", "candidate"))
    measurements = read_measurements(artifact)
    target = validated(Target, dict(artifact.manifest["target"]), place=f"{MANIFEST}: target")
    readings = read_devices(artifact)
    judgements = judge(reference, candidate, measurements, target, readings)
    return _Evidence(target, reference, candidate, measurements, readings, judgements)


def _manifest_claims(artifact: Artifact, evidence: _Evidence) -> list[Mismatch]:
    """The verdict, the task, the weight of the model that ships, and what the bill lists."""
    manifest = artifact.manifest
    source, data = manifest.get("source"), manifest.get("data")
    claimed = {
        "verdict": manifest.get("verdict"),
        "task": source.get("task") if isinstance(source, dict) else None,
    }
    derived = {"verdict": overall(evidence.judgements).value, "task": evidence.candidate.task}
    found = differences(MANIFEST, claimed, derived)
    try:
        weights = OnnxModel(artifact.model_directory).weight_files()
        found += differences(
            f"{EVIDENCE}/{MEASUREMENTS}: candidate_size.disk_bytes",
            evidence.measurements.candidate_size.disk_bytes,
            sum(path.stat().st_size for path in weights),
        )
        bill = read_bytes(artifact, SBOM).decode("utf-8")
        listed, libraries = sbom_hashes(bill), sbom_libraries(bill)
    except (OSError, ValueError, ArtifactError) as error:
        return [*found, Mismatch(SBOM, f"must be a bill of what ships: {error}")]
    hashes = {
        f"file:{name}": entry.get("sha256")
        for name, entry in manifest["files"].items()
        if name.startswith("model/") and isinstance(entry, dict)
    }
    for name, facts in (("source-model", source), ("data", data)):
        hashes[name] = facts.get("sha256") if isinstance(facts, dict) else None
    found += differences(SBOM, listed, hashes)
    versions = manifest.get("versions")
    named = versions if isinstance(versions, dict) else {}
    used = {name: version for name, version in named.items() if version != "absent"}
    billed = {name: libraries.get(name) for name in used}
    found += differences(f"{SBOM}: libraries", billed, used)
    listed_devices = [[entry.name, entry.required] for entry in evidence.target.devices]
    asked = [[reading.device, reading.required] for reading in evidence.readings]
    found += differences(f"{EVIDENCE}/{DEVICES}: devices", asked, listed_devices)
    return (
        found + _untold(artifact) + _unshipped(artifact, evidence) + _measured_otherwise(evidence)
    )


def _untold(artifact: Artifact) -> list[Mismatch]:
    """What the manifest must say so that the run can be repeated."""
    kinds = {"stages": dict, "versions": dict, "seed": int}
    return [
        Mismatch(MANIFEST, f"must say {name}")
        for name, kind in kinds.items()
        if not isinstance(value := artifact.manifest.get(name), kind) or value == {}
    ]


def _unshipped(artifact: Artifact, evidence: _Evidence) -> list[Mismatch]:
    """Files that the target's format asks for and the manifest does not name."""
    if evidence.target.format != "ort":
        return []
    return [
        Mismatch(MANIFEST, f"must name model/{name}, which the target's format asks for")
        for name in (ORT_FILE, OPERATORS_FILE)
        if f"model/{name}" not in artifact.manifest["files"]
    ]


def _measured_otherwise(evidence: _Evidence) -> list[Mismatch]:
    """Threads and shapes that are not the target's; a model's context may cut a prompt."""
    place, ran = f"{EVIDENCE}/{MEASUREMENTS}", evidence.measurements
    asked = evidence.target.workload
    found = differences(f"{place}: threads", ran.threads, evidence.target.threads)
    for name in ("batch", "sequence_length", "prompt_length", "decode_tokens"):
        timed, wanted = getattr(ran.workload, name), getattr(asked, name)
        cut = name in ("prompt_length", "decode_tokens") and timed < wanted
        if not cut:
            found += differences(f"{place}: workload.{name}", timed, wanted)
    return found


def _report_claims(artifact: Artifact, report: Report, evidence: _Evidence) -> list[Mismatch]:
    """Everything in the report that evidence and manifest decide."""
    manifest, target = artifact.manifest, evidence.target
    source = manifest.get("source")
    as_json = tuple(judgement.to_json() for judgement in evidence.judgements)
    derived = replace(
        report,
        verdict=overall(evidence.judgements).value,
        summary=explain(as_json, report.stability),
        judgements=as_json,
        model={k: v for k, v in dict(source or {}).items() if k not in _SOURCE_ONLY},
        data=manifest.get("data") or {},
        target=target.model_dump(mode="json", exclude={"recipe", "budgets"}, exclude_none=True),
        recipe=manifest.get("candidate") or {},
        phases=phases_of(evidence.measurements, target),
        observations=observed(evidence.reference, evidence.candidate, target),
        slices=slice_rows(evidence.reference, evidence.candidate, target),
        devices=tuple(readings_to_json(evidence.readings)),
        environment=evidence.measurements.environment,
        times=evidence.measurements.answer_times,
        versions=manifest.get("versions") or {},
        seed=manifest.get("seed") or 0,
        command=manifest.get("command") or "",
    )
    found = differences(REPORT, _by_metric(report), _by_metric(derived))
    if report.stability is not None:
        first = report.stability["repeats"][0]
        claimed = {"verdict": first["verdict"], "measured": first["measured"]}
        shipped = {
            "verdict": derived.verdict,
            "measured": {j["metric"]: j["measured"] for j in as_json},
        }
        found += differences(f"{REPORT}: stability.repeats[0]", claimed, shipped)
    return found + _missing_notes(artifact, report, evidence)


# What the manifest says of the source beside what the report says.
_SOURCE_ONLY = ("allow_pickle", "trust_remote_code")


def _missing_notes(artifact: Artifact, report: Report, evidence: _Evidence) -> list[Mismatch]:
    readings = artifact.manifest.get("test_readings")
    earlier = readings.get("candidates", []) if isinstance(readings, dict) else []
    note = readings_note([str(key) for key in earlier])
    expected = [
        *not_judged(evidence.measurements, evidence.target, evidence.candidate, evidence.readings),
        *remarks(evidence.measurements),
        *cautions(evidence.reference, evidence.measurements, evidence.target.evidence),
        *([repeated(report.stability)] if report.stability else []),
    ]
    found = [
        Mismatch(f"{REPORT}: notes", "must say what was not judged or read before", derived=line)
        for line in [*expected, *([note] if note else [])]
        if line not in report.notes
    ]
    counted = readings.get("earlier") if isinstance(readings, dict) else None
    return found + differences(f"{MANIFEST}.test_readings.earlier", counted, len(earlier))


def _pages(artifact: Artifact, report: Report) -> list[Mismatch]:
    """Each page of the report that is not what the report comes to."""
    found = []
    for name, text in render(report).items():
        if name == REPORT:
            continue
        try:
            written = read_bytes(artifact, name)
        except ArtifactError as error:
            found.append(_unreadable(artifact, error, name))
            continue
        if written != text.encode():
            found.append(
                Mismatch(name, f"does not say what {REPORT} says{_other_version(artifact)}")
            )
    return found


def _other_version(artifact: Artifact) -> str:
    from exporter import __version__

    tool = artifact.manifest.get("tool")
    made = tool.get("version") if isinstance(tool, dict) else None
    if made == __version__:
        return ""
    return f" (made by version {made}, this is {__version__}: verify with the version that made it)"


def _by_metric(report: Report) -> dict[str, Any]:
    """The report as JSON, its judgements by their metrics, so that a difference names one."""
    ready = report.to_json()
    judgements = ready["judgements"]
    ready["metrics"] = [judgement.get("metric") for judgement in judgements]
    ready["judgements"] = {str(judgement.get("metric")): judgement for judgement in judgements}
    return ready


def _unreadable(artifact: Artifact, error: Exception, what: str) -> Mismatch:
    """Why a claim could not be followed up; that it could not is a fault of the artifact."""
    if isinstance(error, InputError):
        place = error.place.removeprefix(f"{artifact.directory}/")
        value = "" if error.got is None else f", got {error.got}"
        return Mismatch(place, f"{error.rule}{value}")
    return Mismatch(what, f"cannot be judged: {type(error).__name__}: {error}")
