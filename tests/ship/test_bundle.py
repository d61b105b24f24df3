"""The bundle is whole, proven by its manifest, and made of nothing that does not belong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.artifact import load_artifact, publishing
from exporter.errors import ArtifactError, ModelError
from exporter.models.scores import Scores, load_scores
from exporter.report.document import Report
from exporter.report.json import read_report
from exporter.report.render import render
from exporter.ship.bundle import assemble, assemble_model
from tests.ship.conftest import Shipped
from tests.tiny import LABELS

Ship = Callable[[str], Shipped]
Run = Callable[..., Any]

SCORES = Scores(
    "text-classification",
    ("a" * 64, "b" * 64),
    {"correct": np.array([1.0, 0.0]), "label": np.array([0.0, 2.0])},
    {"embedding": np.ones((2, 4), np.float32)},
)


def test_published_artifact_is_whole_and_any_change_shows(shipped: Ship, tmp_path: Path) -> None:
    bundle = shipped("bert")
    out = tmp_path / "dist" / "bert-mobile"
    report = Report("bert-mobile", "INCONCLUSIVE", "Nothing was judged.", ())
    with publishing(out) as directory:
        assemble_model(
            directory,
            model=bundle.model,
            task="text-classification",
            preprocessor_files=bundle.checkpoint,
        )
        assemble(
            directory,
            documents=render(report),
            manifest={"seed": 3},
            reference_scores=SCORES,
            candidate_scores=SCORES,
        )
    artifact = load_artifact(out)
    assert artifact.manifest["seed"] == 3
    files = set(artifact.manifest["files"])
    assert {
        "README.md",
        "evidence/candidate.jsonl",
        "evidence/reference.jsonl",
        "junit.xml",
        "model/config.json",
        "model/model.onnx",
        "model/run.json",
        "model/tokenizer.json",
        "report.html",
        "report.json",
        "report.md",
        "run.py",
    } <= files
    assert not [f for f in files if f.endswith((".safetensors", ".bin", ".npz"))]
    again = load_scores(out / "evidence", "candidate")
    assert again.ids == SCORES.ids
    np.testing.assert_array_equal(again.values["correct"], SCORES.values["correct"])
    assert read_report(out / "report.json") == report
    with (out / "run.py").open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    with pytest.raises(ArtifactError, match=r"run\.py"):
        load_artifact(out)


def test_same_inputs_give_the_same_bytes(shipped: Ship, tmp_path: Path) -> None:
    bundle = shipped("bert")
    texts = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        assemble_model(
            tmp_path / name,
            model=bundle.model,
            task="text-classification",
            preprocessor_files=bundle.checkpoint,
        )
        assemble(tmp_path / name, documents={}, manifest={})
        texts.append((tmp_path / name / "manifest.json").read_bytes())
    assert texts[0] == texts[1]


def test_the_configuration_of_what_ships_wins(shipped: Ship, tmp_path: Path) -> None:
    bundle = shipped("bert")
    config = json.loads((bundle.checkpoint / "config.json").read_text(encoding="utf-8"))
    config |= {"num_hidden_layers": 1, "id2label": {"0": "x", "1": "y", "2": "z"}}
    assemble_model(
        tmp_path,
        model=bundle.model,
        task="text-classification",
        preprocessor_files=bundle.checkpoint,
        config=config,
    )
    shown = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    assert shown["num_hidden_layers"] == 1
    run = json.loads((tmp_path / "model" / "run.json").read_text(encoding="utf-8"))
    assert run["labels"] == ["x", "y", "z"]
    assert run["max_length"] == 64  # the model's own limit


def test_labels_in_the_order_of_their_numbers(shipped: Ship, tmp_path: Path) -> None:
    bundle = shipped("bert")
    config = {"id2label": {str(i): f"class {i}" for i in (10, 9, 2, *range(2), *range(3, 9))}}
    assemble_model(tmp_path, model=bundle.model, task="text-classification", config=config)
    run = json.loads((tmp_path / "model" / "run.json").read_text(encoding="utf-8"))
    assert run["labels"] == [f"class {i}" for i in range(11)]


def test_without_names_classes_are_numbers(shipped: Ship, tmp_path: Path) -> None:
    bundle = shipped("bert")
    notes = assemble_model(tmp_path, model=bundle.model, task="text-classification")
    assert "without a tokenizer" in notes[0]
    run = json.loads((tmp_path / "model" / "run.json").read_text(encoding="utf-8"))
    assert run["labels"] == ["0", "1", "2"]


def test_vocabulary_only_tokenizers_ship_as_tokenizer_json(
    shipped: Ship, run_bare: Run, tmp_path: Path
) -> None:
    bundle = shipped("bert")
    files = tmp_path / "old"
    files.mkdir()
    vocabulary = bundle.preprocessor.get_vocab()
    words = sorted(vocabulary, key=vocabulary.__getitem__)
    (files / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    (files / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    )
    shutil.copyfile(bundle.checkpoint / "config.json", files / "config.json")
    out = tmp_path / "shipped"
    out.mkdir()
    notes = assemble_model(
        out, model=bundle.model, task="text-classification", preprocessor_files=files
    )
    assert notes == ()
    new = run_bare(out, "The red CAT")
    old = run_bare(bundle.directory, "the red cat")
    assert new.returncode == 0, new.stderr
    assert new.stdout.split("->")[1] == old.stdout.split("->")[1]


def test_pairs_are_read_two_by_two(shipped: Ship, run_bare: Run, tmp_path: Path) -> None:
    bundle = shipped("bert")
    assemble_model(
        tmp_path,
        model=bundle.model,
        task="text-classification",
        preprocessor_files=bundle.checkpoint,
        paired=True,
    )
    done = run_bare(tmp_path, "a cat", "two dog", "the bird", "a fish")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(" ->")[0] for line in lines] == ["a cat | two dog", "the bird | a fish"]
    assert set(LABELS) >= {line.split("-> ")[1].split(" ")[0] for line in lines}
    odd = run_bare(tmp_path, "a cat", "two dog", "the bird")
    assert odd.returncode == 1
    assert odd.stderr.startswith("usage: python run.py TEXT TEXT")


def test_a_malformed_configuration_is_refused(shipped: Ship, tmp_path: Path) -> None:
    bundle = shipped("bert")
    files = tmp_path / "files"
    files.mkdir()
    (files / "config.json").write_text("{", encoding="utf-8")
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match=r"config\.json"):
        assemble_model(
            tmp_path / "out",
            model=bundle.model,
            task="text-classification",
            preprocessor_files=files,
        )
