"""The whole chain on a checkpoint of each family, through the Python API."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

import exporter
from exporter.artifact import load_artifact
from exporter.errors import ArtifactError, DataError, ModelError, OutputError
from exporter.judge.gate import judge_cost
from exporter.judge.measure import Measurements
from exporter.models.scores import load_scores
from tests import chain, tiny

FAMILIES = ("bert", "modernbert", "bert-encoder", "gpt2", "llama", "gemma3", "vit", "mobilenetv2")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_goes_through(family: str, tmp_path: Path, store: Path) -> None:
    model = tiny.checkpoint(family, tmp_path / family)
    data = chain.data_for(family, tmp_path)
    result = exporter.export(
        model, data=data, target=chain.quick_target(), out=tmp_path / "out", cache=store
    )

    artifact = load_artifact(result.directory)  # proves every hash
    verified = exporter.verify(result.directory)
    assert verified.sound, verified.to_text()
    assert verified.judgements == result.judgements
    assert artifact.manifest["verdict"] == result.verdict == result.report.verdict
    assert {j.metric for j in result.judgements} >= {"latency_ratio", "disk_size_ratio"}
    chosen = [row for row in result.report.candidates if row.status == "chosen"]
    assert len(chosen) == 1
    # None may fail to build on any family: a reason is given only for what does not apply.
    assert not [row for row in result.report.candidates if row.status == "error"]
    parity = result.report.parity
    assert parity is not None
    assert parity["max_abs_diff"] < 1e-3
    before = load_scores(result.directory / "evidence", "reference")
    after = load_scores(result.directory / "evidence", "candidate")
    assert before.ids == after.ids
    assert len(before) >= 20
    assert (result.directory / "run.py").is_file()
    assert "<svg" in (result.directory / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("classifier")
    return {
        "model": tiny.checkpoint("bert", root / "bert"),
        "data": chain.text_data(root / "rows.jsonl"),
        "cache": root / "cache",
        "root": root,
    }


def _run(c: dict[str, Path], name: str, **options: object) -> exporter.Result:
    return exporter.export(
        c["model"],
        data=c["data"],
        target=options.pop("target", None) or chain.quick_target(),  # type: ignore[arg-type]
        out=c["root"] / name,
        cache=c["cache"],
        **options,  # type: ignore[arg-type]
    )


def _hashes(directory: Path) -> dict[str, str]:
    return {
        p.relative_to(directory).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(directory.rglob("*"))
        if p.is_file()
    }


def test_a_second_run_makes_the_same_artifact_and_runs_no_stage(
    classifier: dict[str, Path],
) -> None:
    # an undecided latency would be measured anew
    target = chain.quick_target(accuracy_drop_points=60, latency_ratio=0.01)
    first = _run(classifier, "one", target=target)
    before = {p: p.stat().st_mtime_ns for p in classifier["cache"].rglob("*") if p.is_file()}
    one = _hashes(first.directory)
    second = _run(classifier, "one", target=target)
    after = {p: p.stat().st_mtime_ns for p in classifier["cache"].rglob("*") if p.is_file()}
    assert _hashes(second.directory) == one
    changed = [p for p in after if p.suffix != ".lock" and after[p] != before.get(p)]
    assert not changed


@pytest.mark.parametrize("change", ["weight", "example", "option", "seed"])
def test_whatever_changes_runs_again(
    change: str, classifier: dict[str, Path], tmp_path: Path
) -> None:
    """One changed weight, example or option must not hit what the old one made."""
    import shutil

    _run(classifier, "base")
    c = dict(classifier)
    target = chain.quick_target()
    options: dict[str, object] = {}
    if change == "weight":
        from safetensors.numpy import load_file, save_file

        c["model"] = Path(shutil.copytree(c["model"], tmp_path / "model"))
        file = c["model"] / "model.safetensors"
        tensors = load_file(file)
        tensors["classifier.bias"][0] += 0.5
        save_file(tensors, file, metadata={"format": "pt"})
    elif change == "example":
        text = c["data"].read_text(encoding="utf-8").replace('"the ', '"a ', 1)
        c["data"] = tmp_path / "rows.jsonl"
        c["data"].write_text(text, encoding="utf-8")
    elif change == "option":
        recipe = json.loads(json.dumps(chain.RECIPE))
        recipe["candidates"][0]["per_channel"] = False
        target = chain.quick_target(recipe=recipe)
    else:
        options["seed"] = 1

    def entries() -> set[str]:
        return {p.parent.name + p.name for p in c["cache"].glob("*/*") if p.is_dir()}

    before = entries()
    c["root"] = tmp_path
    _run(c, "again", target=target, **options)
    stages = {name[:-32] for name in entries() - before}
    expected = {
        "weight": {"exported", "quantized", "scores", "measurements", "pruned", "fine-tuned"},
        "example": {"examples"},
        "option": {"quantized", "scores", "measurements"},
        "seed": {"examples"},
    }[change]
    assert expected <= stages
    if change == "option":
        assert not stages & {"exported", "pruned", "fine-tuned", "examples"}


def test_check_judges_again_and_names_a_changed_byte(classifier: dict[str, Path]) -> None:
    made = _run(classifier, "checked")
    again = exporter.check(made.directory, cache=classifier["cache"])
    quality = {"accuracy_drop_points", "disk_size_ratio"}
    before = {j.metric: j.measured for j in made.judgements if j.metric in quality}
    assert {j.metric: j.measured for j in again.judgements if j.metric in quality} == before

    alone = exporter.check(made.directory, cache=classifier["root"] / "empty")
    verdicts = {j.metric: j.verdict for j in alone.judgements}
    assert verdicts["latency_ratio"] == "INCONCLUSIVE"
    assert {j.metric: j.measured for j in alone.judgements if j.metric in quality} == before

    file = made.directory / "model" / "model.onnx"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match=r"model/model\.onnx.*differs from the hash"):
        exporter.check(made.directory, cache=classifier["cache"])


def test_latency_follows_again_from_the_times_that_shipped(classifier: dict[str, Path]) -> None:
    target = chain.quick_target()
    made = _run(classifier, "timed")
    recorded = (made.directory / "evidence" / "measurements.json").read_text(encoding="utf-8")
    measurements = Measurements.from_json(json.loads(recorded))
    assert measurements.looks
    assert len(measurements.blocks) > 1
    derived = judge_cost(measurements, target, "text-classification")
    shipped = {j.metric: j for j in made.judgements}
    assert {j.metric for j in derived} > {"latency_ratio"}
    assert [shipped[j.metric] for j in derived] == derived
    assert shipped["latency_ratio"].count == measurements.looks[-1]
    for times in made.report.times.values():
        assert len(times) == measurements.looks[-1]
    assert made.report.environment["threads"] == target.threads

    again = exporter.check(made.directory, cache=classifier["cache"])
    assert len(again.report.times["candidate"]) == again.report.phases[0].rounds
    alone = exporter.check(made.directory, cache=classifier["root"] / "empty")
    assert alone.report.times == {}


def test_a_lost_budget_fails_and_still_ships_the_best(classifier: dict[str, Path]) -> None:
    target = chain.quick_target(latency_ratio=1.0, disk_size_mib=1e-5)
    result = _run(classifier, "too-big", target=target)
    assert result.verdict == "FAIL"
    assert result.exit_code == 1
    assert load_artifact(result.directory).manifest["verdict"] == "FAIL"
    assert "size on disk" in result.report.summary
    note = "No candidate passed every budget on development data"
    assert any(note in n for n in result.report.notes)
    assert "None passed every budget there" in (result.directory / "report.html").read_text()


def test_thin_evidence_never_passes(classifier: dict[str, Path]) -> None:
    target = chain.quick_target(accuracy_drop_points=0.1)  # 60 examples cannot show that
    result = _run(classifier, "thin", target=target)
    assert result.verdict == "INCONCLUSIVE"
    assert result.exit_code == 3


def test_do_nothing_fails_every_shipped_profile(classifier: dict[str, Path]) -> None:
    nothing = {"candidates": [{"name": "nothing", "quantization": "none"}]}
    for name in exporter.target_names():
        result = _run(classifier, f"nothing-{name}", target=chain.quick_target(name, nothing))
        assert result.verdict == "FAIL", name


def test_an_output_directory_that_is_not_ours_is_left_alone(classifier: dict[str, Path]) -> None:
    theirs = classifier["root"] / "theirs"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match="not made by this tool"):
        _run(classifier, "theirs")
    assert (theirs / "thesis.txt").read_text() == "precious"


def test_an_onnx_file_goes_through_without_pruning(classifier: dict[str, Path]) -> None:
    made = _run(classifier, "source")
    folder = classifier["root"] / "onnx"
    folder.mkdir()
    reference = classifier["cache"] / "exported" / made_key(made) / "model"
    for path in reference.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((classifier["model"] / name).read_bytes())
    result = exporter.export(
        folder / "model.onnx",
        data=classifier["data"],
        target=chain.quick_target(),
        out=classifier["root"] / "from-onnx",
        cache=classifier["cache"],
    )
    rows = {row.name: row for row in result.report.candidates}
    assert rows["pruned"].status == "skipped"
    assert ".onnx" in rows["pruned"].reason
    assert {rows["dynamic-int8"].status, rows["static-int8"].status} & {"chosen"}


def test_flips_are_real_and_quoted_only_with_leave(classifier: dict[str, Path]) -> None:
    bold = {"candidates": [{"name": "bold", "quantization": "none", "pruning": {"ffn": 0.9}}]}
    target = chain.quick_target(recipe=bold, worst_slice_drop_points=50, flip_ratio=0.9)
    result = _run(classifier, "flips", target=target)
    before = load_scores(result.directory / "evidence", "reference")
    after = load_scores(result.directory / "evidence", "candidate")
    differ = int((before.values["prediction"] != after.values["prediction"]).sum())
    assert differ
    assert len(result.report.flips) == min(differ, 8)
    for flip in result.report.flips:
        assert flip.reference != flip.candidate
        assert flip.expected == tiny.label_of(flip.text)
    flips = next(j for j in result.judgements if j.metric == "flip_ratio")
    assert flips.measured == pytest.approx(differ / len(before))
    assert {row.name for row in result.report.slices} <= set(tiny.LABELS)
    quoted = result.report.flips[0].text
    assert quoted in (result.directory / "report.html").read_text(encoding="utf-8")

    silent = _run(classifier, "silent", target=target, show_examples=False)
    assert silent.report.flips == ()
    assert "--no-examples" in silent.report.command
    for name in ("report.html", "report.json", "report.md", "junit.xml"):
        assert quoted not in (silent.directory / name).read_text(encoding="utf-8")


def made_key(result: exporter.Result) -> str:
    manifest = load_artifact(result.directory).manifest
    return str(manifest["stages"]["reference"])


def test_a_plain_module_goes_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop.py").write_text(
        "import torch\n"
        "def network():\n"
        "    torch.manual_seed(0)\n"
        "    layers = torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3)\n"
        "    return torch.nn.Sequential(*layers), {'input': torch.zeros(2, 16)}\n"
        "def rows():\n"
        "    import numpy as np\n"
        "    rng = np.random.default_rng(0)\n"
        "    for i in range(300):\n"
        "        x = rng.normal(size=16).astype('float32')\n"
        "        yield {'input': x, 'label': int(x[0] > 0) + int(x[1] > 0)}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    result = exporter.export(
        "shop:network",
        data="shop:rows",
        task="text-classification",
        target=chain.quick_target(),
        out=tmp_path / "out",
        cache=tmp_path / "cache",
    )
    rows = {row.name: row for row in result.report.candidates}
    assert rows["pruned"].status == "skipped"
    assert "chosen" in {row.status for row in rows.values()}


def test_missing_data_is_refused_before_any_work(classifier: dict[str, Path]) -> None:
    with pytest.raises(DataError, match="--data"):
        exporter.export(classifier["model"], data=None)
    with pytest.raises(ModelError, match="no candidate of the recipe applies"):
        _run(
            classifier,
            "none",
            target=chain.quick_target(
                recipe={
                    "candidates": [
                        {"name": "x", "tasks": ["text-generation"], "quantization": "none"}
                    ]
                }
            ),
        )
