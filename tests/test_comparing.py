"""`exporter compare` on real artifacts: may the new one replace the old one?"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import exporter
from exporter.artifact import load_artifact, write_manifest
from exporter.errors import ArtifactError, InputError
from exporter.judge.measure import Measurements, measure
from exporter.judge.sequential import OPENINGS
from exporter.models.scores import load_scores
from tests import chain, tiny
from tests.signed import edit
from tests.test_cli import run

NOTHING = {"name": "nothing", "quantization": "none"}
BUDGETS = {"accuracy_drop_points": 20.0, "disk_size_ratio": 0.9}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Artifacts of one model: quantized, not quantized, and of another original."""
    root = tmp_path_factory.mktemp("shelf")
    model = tiny.checkpoint("bert", root / "bert")
    other = tiny.checkpoint("bert", root / "other", seed=5)
    data = chain.text_data(root / "rows.jsonl")
    for name, source, candidate in (
        ("int8", model, chain.RECIPE["candidates"][0]),
        ("float", model, NOTHING),
        ("retrained", other, chain.RECIPE["candidates"][0]),
    ):
        recipe = {"candidates": [candidate], "calibration_examples": 16}
        exporter.export(
            source,
            data=data,
            target=chain.quick_target(recipe=recipe, **BUDGETS),
            out=root / name,
            cache=root / "cache",
        )
    return {name: root / name for name in ("int8", "float", "retrained", "cache")}


def altered(source: Path, out: Path, change: Callable[[dict[str, Any], Path], None]) -> Path:
    """A copy of an artifact, changed and hashed again as another export would be."""
    shutil.copytree(source, out)
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    change(manifest, out)
    write_manifest(out, {k: v for k, v in manifest.items() if k not in ("files", "schema")})
    load_artifact(out)
    return out


def rows(comparison: exporter.Comparison) -> dict[str, Any]:
    return {j.metric: j for j in comparison.judgements}


METRICS = [
    "accuracy_drop_points",
    "latency_ratio",
    "disk_size_ratio",
    "download_size_ratio",
    "peak_memory_ratio",
]


@pytest.mark.parametrize("name", ["int8", "float", "retrained"])
def test_an_artifact_may_replace_itself_and_nothing_changed(
    shelf: dict[str, Path], name: str
) -> None:
    found = exporter.compare(shelf[name], shelf[name])
    assert [j.metric for j in found.judgements] == METRICS
    assert {j.verdict for j in found.judgements} == {"PASS"}
    assert all(j.low == j.measured == j.high for j in found.judgements)  # nothing is estimated
    assert found.changes == ()
    assert found.exit_code == 0
    assert "Nothing changed" in found.summary


def test_what_grew_regresses_and_the_other_way_round_shrinks(shelf: dict[str, Path]) -> None:
    grown = exporter.compare(shelf["int8"], shelf["float"])
    shrunk = exporter.compare(shelf["float"], shelf["int8"])
    assert grown.verdict == "FAIL"
    assert rows(grown)["disk_size_ratio"].verdict == "FAIL"
    assert rows(shrunk)["disk_size_ratio"].verdict == "PASS"
    for metric, row in rows(grown).items():
        back = rows(shrunk)[metric]
        assert row.candidate == back.reference
        mirrored = -back.measured if row.unit == "points" else 1 / back.measured
        assert row.measured == pytest.approx(mirrored, abs=1e-9)
    files = load_artifact(shelf["float"]).manifest["files"]
    old = load_artifact(shelf["int8"]).manifest["files"]
    size = files["model/model.onnx"]["size_bytes"] / old["model/model.onnx"]["size_bytes"]
    assert rows(grown)["disk_size_ratio"].measured == pytest.approx(size)


def test_changes_name_recipe_and_model_and_nothing_that_stayed(shelf: dict[str, Path]) -> None:
    found = exporter.compare(shelf["int8"], shelf["float"])
    changed = {(c.section, c.name): (c.old, c.new) for c in found.changes}
    assert changed["recipe", "quantization"] == ("dynamic-int8", "none")
    assert ("model", "files") in changed
    assert not {s for s, _ in changed} & {"source", "target", "versions", "seed", "code", "machine"}
    other = exporter.compare(shelf["int8"], shelf["retrained"])
    sections = {(c.section, c.name) for c in other.changes}
    assert {("source", "sha256"), ("source", "name")} <= sections
    assert not {s for s, _ in sections} & {"recipe", "target", "versions", "data", "seed"}


def test_another_original_needs_both_timed_here(shelf: dict[str, Path]) -> None:
    found = exporter.compare(shelf["int8"], shelf["retrained"])
    assert rows(found)["latency_ratio"].verdict == "INCONCLUSIVE"
    assert "different originals" in rows(found)["latency_ratio"].reason
    assert rows(found)["peak_memory_ratio"].measured is not None
    timed = exporter.compare(shelf["int8"], shelf["retrained"], measure=True)
    row = rows(timed)["latency_ratio"]
    assert row.measured is not None
    assert "interleaved rounds on this machine" in row.reason
    assert "--measure" not in row.reason


def test_another_float_file_of_one_original_needs_both_timed_here(
    shelf: dict[str, Path], tmp_path: Path
) -> None:
    """Exported otherwise, the original may itself be slower: a ratio to it tells nothing."""

    def exported_otherwise(manifest: dict[str, Any], out: Path) -> None:
        manifest["stages"]["reference"] = "f" * 32
        manifest["reference"]["sha256"] = "0" * 64

    def not_recorded(manifest: dict[str, Any], out: Path) -> None:
        del manifest["reference"]

    same = exporter.compare(shelf["int8"], shelf["float"])
    assert rows(same)["latency_ratio"].measured is not None
    for name, change, words in (
        ("slower", exported_otherwise, "different float32 files of one original: measure both"),
        ("older", not_recorded, "it is not recorded"),
    ):
        other = altered(shelf["float"], tmp_path / name, change)
        row = rows(exporter.compare(shelf["int8"], other))["latency_ratio"]
        assert (row.verdict, row.measured) == ("INCONCLUSIVE", None)
        assert words in row.reason
        assert "--measure" in row.reason


def test_both_are_opened_several_times_to_be_timed(
    shelf: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where one session lies in memory makes it faster or slower for as long as it lives."""
    taken = []

    def kept(*given: Any, **options: Any) -> Measurements:
        taken.append(measure(*given, **options))
        return taken[-1]

    monkeypatch.setattr("exporter.comparing.measure", kept)
    exporter.compare(shelf["int8"], shelf["float"], measure=True)
    (measured,) = taken
    assert measured.looks == ()
    assert len(measured.blocks) >= OPENINGS
    assert sum(measured.blocks) == len(measured.times_ms["candidate"]["run"])


def test_another_cpu_or_runtime_leaves_time_open(shelf: dict[str, Path], tmp_path: Path) -> None:
    def elsewhere(manifest: dict[str, Any], out: Path) -> None:
        file = out / "evidence" / "measurements.json"
        measured = json.loads(file.read_text())
        measured["host"]["cpu"] = "Another CPU"
        file.write_text(json.dumps(measured))

    def newer(manifest: dict[str, Any], out: Path) -> None:
        manifest["versions"]["onnxruntime"] = "9.9.9"

    moved = altered(shelf["float"], tmp_path / "moved", elsewhere)
    found = exporter.compare(shelf["int8"], moved)
    assert rows(found)["latency_ratio"].verdict == "INCONCLUSIVE"
    assert "on other CPUs" in rows(found)["latency_ratio"].reason
    assert any("different CPUs" in note for note in found.notes)
    assert [c.new for c in found.changes if c.section == "machine"] == ["Another CPU"]

    other = altered(shelf["int8"], tmp_path / "newer", newer)
    found = exporter.compare(shelf["int8"], other)  # the same bytes, run by another runtime
    assert "versions of onnxruntime" in rows(found)["latency_ratio"].reason
    assert [(c.name, c.new) for c in found.changes] == [("onnxruntime", "9.9.9")]
    assert found.exit_code == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["workload"].update(batch=2), "with other workloads"),
        (lambda m: m.update(threads=m["threads"] + 1), "with other numbers of threads"),
    ],
)
def test_another_workload_or_number_of_threads_leaves_time_and_memory_open(
    change: Callable[[Any], object], words: str, shelf: dict[str, Path], tmp_path: Path
) -> None:
    def elsewise(manifest: dict[str, Any], out: Path) -> None:
        edit(out / "evidence" / "measurements.json", change)

    other = altered(shelf["float"], tmp_path / "other", elsewise)
    found = rows(exporter.compare(shelf["int8"], other))
    for metric in ("latency_ratio", "peak_memory_ratio"):
        assert found[metric].verdict == "INCONCLUSIVE"
        assert f"they were measured {words}:" in found[metric].reason
    assert found["disk_size_ratio"].measured is not None


def test_timed_here_the_old_model_is_what_the_new_one_is_compared_with(
    shelf: dict[str, Path],
) -> None:
    shipped, here = (
        rows(exporter.compare(shelf["int8"], shelf["float"], measure=m)) for m in (False, True)
    )
    assert "interleaved rounds on this machine" in here["latency_ratio"].reason
    for metric in ("disk_size_ratio", "download_size_ratio"):
        assert here[metric].measured == shipped[metric].measured
        assert here[metric].measured > 1.05


def _kept(start: int, stop: int, spoil: bool = False) -> Callable[[dict[str, Any], Path], None]:
    """Evidence of some of the examples only."""

    def change(manifest: dict[str, Any], out: Path) -> None:
        whole = load_scores(out / "evidence", "candidate")
        part = {name: column[start:stop].copy() for name, column in whole.values.items()}
        if spoil:
            part["correct"][:] = 0.0
        replace(whole, ids=whole.ids[start:stop], values=part).save(out / "evidence", "candidate")

    return change


def test_common_examples_are_counted_and_disjoint_ones_decide_nothing(
    shelf: dict[str, Path], tmp_path: Path
) -> None:
    half = altered(shelf["float"], tmp_path / "half", _kept(0, 40))
    found = exporter.compare(shelf["int8"], half)
    assert found.examples == 40
    assert any("40 test examples that both" in note for note in found.notes)
    late = altered(shelf["int8"], tmp_path / "late", _kept(40, 60))
    found = exporter.compare(late, half)
    row = rows(found)["accuracy_drop_points"]
    assert row.verdict == "INCONCLUSIVE"
    assert "same test data" in row.reason


def test_lost_answers_fail(shelf: dict[str, Path], tmp_path: Path) -> None:
    worse = altered(shelf["float"], tmp_path / "worse", _kept(0, 60, spoil=True))
    found = exporter.compare(shelf["float"], worse)
    # the model's files are the same, so its answers are: evidence that says otherwise is of no use
    assert found.verdict == "PASS"
    found = exporter.compare(shelf["int8"], worse)
    assert rows(found)["accuracy_drop_points"].verdict == "FAIL"


def test_what_cannot_be_compared_is_refused(shelf: dict[str, Path], tmp_path: Path) -> None:
    model = tiny.checkpoint("gpt2", tmp_path / "gpt2")
    recipe = {"candidates": [chain.RECIPE["candidates"][1]]}
    language = exporter.export(
        model,
        data=chain.text_data(tmp_path / "rows.jsonl", labels=False),
        target=chain.quick_target(recipe=recipe),
        out=tmp_path / "language",
        cache=shelf["cache"],
    ).directory
    with pytest.raises(ArtifactError, match=r"same task as .*text-classification.*text-generation"):
        exporter.compare(shelf["int8"], language)
    assert exporter.compare(language, language).verdict == "PASS"
    with pytest.raises(ArtifactError, match=r"must be an artifact with a manifest\.json"):
        exporter.compare(shelf["int8"], tmp_path)
    with pytest.raises(InputError, match="--tolerance"):
        exporter.compare(shelf["int8"], shelf["int8"], tolerance=float("nan"))

    def bare(manifest: dict[str, Any], out: Path) -> None:
        (out / "evidence" / "measurements.json").unlink()

    older = altered(shelf["int8"], tmp_path / "older", bare)
    with pytest.raises(ArtifactError, match=r"must name evidence/measurements\.json"):
        exporter.compare(older, shelf["int8"])
    (older / "model" / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"config\.json.*differs from the hash"):
        exporter.compare(shelf["int8"], older)


def test_command_line(shelf: dict[str, Path], tmp_path: Path) -> None:
    page = tmp_path / "comparison.md"
    failed = run("compare", shelf["int8"], shelf["float"], "--markdown", page)
    assert failed.returncode == 1, failed.stderr
    assert failed.stdout.rstrip().splitlines()[-1].startswith("The new artifact regresses in")
    assert max(map(len, failed.stdout.split("\n\n")[0].splitlines())) <= 80
    for words in ("size on disk", "recipe: quantization", "dynamic-int8"):
        assert words in failed.stdout
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# ✕ FAIL: int8 → float")
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {8, 5}

    as_json = run("compare", shelf["float"], shelf["float"], "--json")
    assert as_json.returncode == 0
    found = json.loads(as_json.stdout)
    assert found["verdict"] == "PASS"
    assert found["changes"] == []
    assert "no metric regresses" in as_json.stderr

    for arguments, words in (
        ([shelf["int8"], tmp_path], "must be an artifact"),
        ([shelf["int8"], shelf["int8"], "--tolerance", "-1"], "--tolerance: must be"),
        ([shelf["int8"], shelf["int8"], "--markdown", tmp_path], "cannot be written"),
    ):
        bad = run("compare", *arguments)
        assert bad.returncode == 2, bad.stderr
        assert words in bad.stderr
        assert "Traceback" not in bad.stderr


def test_every_field_is_documented(shelf: dict[str, Path]) -> None:
    text = (Path(__file__).parents[1] / "docs" / "compare.md").read_text(encoding="utf-8")
    data = exporter.compare(shelf["int8"], shelf["float"]).to_json()
    json.dumps(data, allow_nan=False)
    names = {*data, *data["old"], *data["metrics"][0], *data["changes"][0]}
    assert {name for name in names if f"`{name}`" not in text} == set()
    assert f"schema {data['schema']}" in text.splitlines()[0]
    for metric in METRICS:
        assert metric in text
