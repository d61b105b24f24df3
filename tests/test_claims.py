"""A claim that was edited after the export is named, even when the hashes are fixed up."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import exporter
from exporter.report.json import read_report
from exporter.report.render import render
from tests import chain, tiny
from tests.signed import edit, fix_hashes, places

OTHER = {"PASS": "FAIL", "FAIL": "INCONCLUSIVE", "INCONCLUSIVE": "FAIL"}


def _judgement(change: Callable[[Any], object], metric: str = "accuracy_drop_points") -> Any:
    def forge(directory: Path) -> None:
        def one(report: Any) -> None:
            change(next(j for j in report["judgements"] if j["metric"] == metric))

        edit(directory / "report.json", one)

    return forge


def _all_wrong(directory: Path) -> None:
    """The candidate answered nothing right."""
    path = directory / "evidence/candidate.jsonl"
    head, *rows = path.read_text(encoding="utf-8").splitlines()
    column = 1 + json.loads(head)["columns"].index("correct")
    changed = []
    for row in map(json.loads, rows):
        row[column] = 0.0
        changed.append(json.dumps(row))
    path.write_text("\n".join([head, *changed]) + "\n", encoding="utf-8")


def _twice_as_fast(measurements: Any) -> None:
    times = measurements["times_ms"]["candidate"]
    for phase in times:
        times[phase] = [ms / 2 for ms in times[phase]]


def _other_model(directory: Path) -> None:
    path = directory / "model/model.onnx"
    path.write_bytes(path.read_bytes() + b"\0\0\0\0")


def _all_pass(directory: Path) -> None:
    """A forger who makes every page again from the edited report."""
    path = directory / "report.json"

    def better(report: Any) -> None:
        for judgement in report["judgements"]:
            judgement.update(measured=0.0, low=0.0, high=0.0, margin=judgement["limit"])

    edit(path, better)
    for name, text in render(read_report(path)).items():
        (directory / name).write_text(text, encoding="utf-8")


SEEDS = {
    "varies": True,
    "spread": {},
    "repeats": [
        {"seed": i, "verdict": verdict, "measured": {"x": 1.0}, "lost": [], "reason": ""}
        for i, verdict in enumerate(("PASS", "FAIL"))
    ],
}

FORGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "measured": (
        _judgement(lambda j: j.update(measured=-5.0)),
        "judgements.accuracy_drop_points.measured",
    ),
    "verdict": (
        _judgement(lambda j: j.update(verdict="INCONCLUSIVE")),
        'judgements.accuracy_drop_points.verdict: does not follow from the evidence: '
        'claimed "INCONCLUSIVE"',
    ),
    "bound": (
        _judgement(lambda j: j.update(high=j["high"] * 1.001), "latency_ratio"),
        "judgements.latency_ratio.high",
    ),
    "limit": (
        _judgement(lambda j: j.update(limit=0.5), "disk_size_ratio"),
        "judgements.disk_size_ratio.limit",
    ),
    "reason": (_judgement(lambda j: j.update(reason="Trust me.")), "accuracy_drop_points.reason"),
    "a judgement more": (
        lambda d: edit(
            d / "report.json", lambda r: r["judgements"].append(dict(r["judgements"][0]))
        ),
        "report.json.metrics",
    ),
    "a judgement less": (
        lambda d: edit(d / "report.json", lambda r: r["judgements"].pop(0)),
        "report.json.judgements.accuracy_drop_points",
    ),
    "overall": (
        lambda d: edit(d / "report.json", lambda r: r.update(verdict=OTHER[r["verdict"]])),
        "report.json.verdict",
    ),
    "overall in the manifest": (
        lambda d: edit(d / "manifest.json", lambda m: m.update(verdict=OTHER[m["verdict"]])),
        "manifest.json.verdict",
    ),
    "summary": (
        lambda d: edit(d / "report.json", lambda r: r.update(summary="Perfect.")),
        "report.json.summary",
    ),
    "phases": (
        lambda d: edit(d / "report.json", lambda r: r["phases"][0].update(ratio=0.01)),
        "report.json.phases[0].ratio",
    ),
    "slices": (
        lambda d: edit(d / "report.json", lambda r: r["slices"][0].update(loss=-3.0)),
        "report.json.slices[0].loss",
    ),
    "observations": (
        lambda d: edit(d / "report.json", lambda r: r["observations"][0].update(candidate=0.0)),
        "report.json.observations[0].candidate",
    ),
    "times": (
        lambda d: edit(
            d / "report.json", lambda r: r["times"].update(candidate=r["times"]["reference"])
        ),
        "report.json.times.candidate",
    ),
    "other seeds": (
        lambda d: edit(d / "report.json", lambda r: r.update(stability=SEEDS)),
        "report.json: stability.repeats[0]",
    ),
    "other seeds untold": (
        lambda d: edit(d / "report.json", lambda r: r.update(stability=SEEDS)),
        "report.json: notes",
    ),
    "another machine": (
        lambda d: edit(d / "report.json", lambda r: r["environment"].update(cpu="Phone")),
        "report.json.environment.cpu",
    ),
    "another model": (
        lambda d: edit(d / "report.json", lambda r: r["model"].update(name="better")),
        "report.json.model.name",
    ),
    "other versions": (
        lambda d: edit(d / "report.json", lambda r: r["versions"].update(onnxruntime="0.0.1")),
        "report.json.versions.onnxruntime",
    ),
    "another seed": (
        lambda d: edit(d / "report.json", lambda r: r.update(seed=7)),
        "report.json.seed",
    ),
    "another command": (
        lambda d: edit(d / "report.json", lambda r: r.update(command="exporter export it")),
        "report.json.command",
    ),
    "a busy machine that the notes keep quiet about": (
        lambda d: edit(
            d / "evidence/measurements.json", lambda m: m["conditions"].update(load_after=999.0)
        ),
        "load 999.0 on",
    ),
    "a verdict for each reader": (
        lambda d: (d / "report.json").write_text(
            (d / "report.json").read_text("utf-8").replace("{", '{"verdict": "PASS",', 1), "utf-8"
        ),
        "report.json: must be valid JSON, got a name stands twice",
    ),
    "no number": (
        lambda d: edit(d / "report.json", lambda r: r.update(seed=float("nan"))),
        "report.json: must be valid JSON, got NaN",
    ),
    "what the report does not know": (
        lambda d: edit(d / "report.json", lambda r: r.update(award="gold")),
        "report.json.award",
    ),
    "every page made again": (_all_pass, "accuracy_drop_points.high"),
    "html": (
        lambda d: (d / "report.html").write_text(
            (d / "report.html").read_text(encoding="utf-8") + " ", encoding="utf-8"
        ),
        "report.html: does not say what report.json says",
    ),
    "junit": (
        lambda d: (d / "junit.xml").write_text("<testsuites/>"),
        "junit.xml: does not say",
    ),
    "markdown": (lambda d: (d / "report.md").write_text("# PASS"), "report.md: does not say"),
    "edited answers": (_all_wrong, "judgements.accuracy_drop_points.measured"),
    "edited times": (
        lambda d: edit(d / "evidence/measurements.json", _twice_as_fast),
        "judgements.latency_ratio.measured",
    ),
    "a wider margin": (
        lambda d: edit(
            d / "manifest.json",
            lambda m: m["target"]["budgets"].update(accuracy_drop_points=50.0),
        ),
        "judgements.accuracy_drop_points.limit",
    ),
    "another confidence": (
        lambda d: edit(
            d / "manifest.json", lambda m: m["target"]["evidence"].update(confidence=0.99)
        ),
        "judgements.accuracy_drop_points.high",
    ),
    "a model of another size": (_other_model, "candidate_size.disk_bytes"),
    "the bill": (
        lambda d: edit(
            d / "sbom.cdx.json",
            lambda b: next(
                c for c in b["components"] if c["bom-ref"] == "source-model"
            )["hashes"][0].update(content="0" * 64),
        ),
        "sbom.cdx.json.source-model",
    ),
    "the bill with two answers": (
        lambda d: edit(
            d / "sbom.cdx.json",
            lambda b: b["components"].insert(0, dict(b["components"][0], hashes=[])),
        ),
        "twice",
    ),
    "a bill for each reader": (
        lambda d: (d / "sbom.cdx.json").write_text(
            '{"components": [],' + (d / "sbom.cdx.json").read_text("utf-8").lstrip()[1:], "utf-8"
        ),
        "stands twice",
    ),
    "a bill without libraries": (
        lambda d: edit(
            d / "sbom.cdx.json",
            lambda b: b.update(
                components=[c for c in b["components"] if c["type"] != "library"]
            ),
        ),
        "sbom.cdx.json: libraries.torch",
    ),
    "other threads": (
        lambda d: edit(d / "evidence/measurements.json", lambda m: m.update(threads=64)),
        "measurements.json: threads",
    ),
    "a shorter input": (
        lambda d: edit(
            d / "evidence/measurements.json", lambda m: m["workload"].update(sequence_length=1)
        ),
        "workload.sequence_length",
    ),
    "a longer prompt": (
        lambda d: edit(
            d / "evidence/measurements.json", lambda m: m["workload"].update(prompt_length=999)
        ),
        "workload.prompt_length",
    ),
    "no stages": (
        lambda d: edit(d / "manifest.json", lambda m: m.pop("stages")), "must say stages"
    ),
    "no seed": (lambda d: edit(d / "manifest.json", lambda m: m.pop("seed")), "must say seed"),
    "no bill": (lambda d: (d / "sbom.cdx.json").unlink(), "sbom.cdx.json: must be a bill"),
    "an earlier reading hidden from the report": (
        lambda d: edit(
            d / "manifest.json",
            lambda m: m.update(test_readings={"earlier": 1, "candidates": ["a" * 32]}),
        ),
        "read once before",
    ),
    "an earlier reading miscounted": (
        lambda d: edit(d / "manifest.json", lambda m: m["test_readings"].update(earlier=3)),
        "test_readings.earlier",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FORGED)
def test_a_claim_that_was_edited_is_named_though_the_hashes_match(case: str, altered: Path) -> None:
    forge, words = FORGED[case]
    forge(altered)
    fix_hashes(altered)
    found = places(altered)
    assert words in found
    assert "differs from the hash" not in found


def test_a_profile_that_was_asked_for_must_be_the_artifacts(
    altered: Path, signed: dict[str, Any]
) -> None:
    asked = signed["inputs"]["target"]
    assert not places(altered, target=asked)
    assert "target, against the profile.budgets" in places(altered, target="mobile")
    edit(altered / "manifest.json", lambda m: m["target"]["budgets"].update(disk_size_ratio=0.99))
    assert "profile.budgets.disk_size_ratio" in places(altered, target=asked)
    assert "limit 0.9 ×" in exporter.verify(signed["result"].directory).to_text()


def test_swapped_evidence_is_named(tmp_path: Path) -> None:
    """Perplexities tell reference and candidate apart; equal accuracies would not."""
    result = exporter.export(
        tiny.checkpoint("llama", tmp_path / "llama"),
        data=chain.text_data(tmp_path / "rows.jsonl", labels=False),
        target=chain.quick_target(
            recipe=chain.RECIPE | {"candidates": chain.RECIPE["candidates"][1:2]}
        ),
        out=tmp_path / "out",
        cache=tmp_path / "cache",
    )
    assert not places(result.directory)
    evidence = result.directory / "evidence"
    (evidence / "reference.jsonl").rename(tmp_path / "kept")
    (evidence / "candidate.jsonl").rename(evidence / "reference.jsonl")
    (tmp_path / "kept").rename(evidence / "candidate.jsonl")
    (result.directory / "manifest.sig").write_bytes(b"")
    fix_hashes(result.directory)
    assert "judgements.perplexity_ratio.measured" in places(result.directory)


def test_hashes_fixed_up_by_themselves_change_nothing(altered: Path) -> None:
    """The forger's last step is not what is caught."""
    fix_hashes(altered)
    assert not places(altered)


def test_only_a_signature_stops_who_makes_everything_again(
    altered: Path, signed: dict[str, Any]
) -> None:
    """Evidence that is invented whole is consistent; the key is what the forger lacks."""
    from exporter.artifact import read_artifact
    from exporter.claims import check_claims
    from exporter.describing import observed, slice_rows
    from exporter.judge.verdict import overall
    from exporter.models.scores import load_scores
    from exporter.report.wording import explain

    _all_wrong(altered)
    judgements, _ = check_claims(read_artifact(altered))
    as_json = tuple(j.to_json() for j in judgements)
    before, after = (load_scores(altered / "evidence", n) for n in ("reference", "candidate"))
    target = signed["inputs"]["target"]
    report = replace(
        read_report(altered / "report.json"),
        judgements=as_json,
        verdict=overall(judgements).value,
        summary=explain(as_json),
        slices=slice_rows(before, after, target),
        observations=observed(before, after, target),
    )
    for name, text in render(report).items():
        (altered / name).write_text(text, encoding="utf-8")
    edit(altered / "manifest.json", lambda m: m.update(verdict=report.verdict))
    fix_hashes(altered)
    assert not places(altered)
    assert "is not the signature" in places(altered, key=signed["keys"]["public"])
