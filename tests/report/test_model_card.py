"""The model card: metadata that the hub understands, text that nobody's name can break."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

import exporter
from exporter.report.document import Report
from exporter.report.model_card import to_model_card
from exporter.ship.runner import TEMPLATES
from tests import chain, tiny
from tests.report import samples


def parsed(report: Report) -> ModelCard:
    return ModelCard(to_model_card(report))


@pytest.mark.parametrize(
    ("make", "task", "quality", "value"),
    [
        (samples.passing, "text-classification", "accuracy", 0.8019),
        (samples.failing, "text-classification", "accuracy", 0.796),
        (samples.language_model, "text-generation", "perplexity", 12.516),
    ],
)
def test_the_hub_reads_every_result(make: object, task: str, quality: str, value: float) -> None:
    report: Report = make()  # type: ignore[operator]
    data = parsed(report).data
    assert data.library_name == "onnx"
    assert data.pipeline_tag == task
    assert data.base_model == "docstring_classifier"
    assert {"onnx", "mobile", report.recipe["quantization"]} <= set(data.tags)
    assert data.model_name == report.title
    found = {result.metric_type: result for result in data.eval_results}
    assert found[quality].metric_value == pytest.approx(value)
    for judgement in report.judgements:
        result = found[judgement["metric"]]
        assert result.metric_value == pytest.approx(judgement["measured"])
        assert result.task_type == task
        assert (result.dataset_name, result.dataset_split) == ("data", "test")
        assert result.dataset_args["sha256"] == report.data["sha256"]


def test_it_says_what_it_is_and_how_it_was_judged() -> None:
    text = parsed(samples.failing()).text
    assert "a bert model for text classification, pruned, fine-tuned and quantized" in text
    assert "✕ FAIL" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 6
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {7}
    for words in ("layers 6 → 5", "best step 300", "31 of 31 planned integer kernels", "AMD EPYC"):
        assert words in text
    assert samples.failing().command in text


def test_what_is_not_known_is_left_out() -> None:
    bare = parsed(Report("bare", "INCONCLUSIVE", "Nothing was judged.", ()))
    assert bare.data.to_dict() == {"library_name": "onnx", "tags": ["onnx", "onnxruntime"]}
    unmeasured = replace(
        samples.passing(),
        judgements=tuple(
            {**j, "measured": None, "candidate": None} for j in samples.passing().judgements
        ),
    )
    assert parsed(unmeasured).data.eval_results is None
    assert not hasattr(parsed(samples.passing()).data, "license") or (
        parsed(samples.passing()).data.license is None
    )


def test_hub_models_are_linked_and_genai_is_named() -> None:
    report = samples.language_model()
    report = replace(
        report, model={**report.model, "hub_id": "org/name"}, runtime="onnxruntime-genai"
    )
    card = parsed(report)
    assert card.data.base_model == "org/name"
    assert card.data.library_name == "onnxruntime-genai"
    assert "pip install onnxruntime-genai numpy tokenizers" in card.text


NASTY = (
    samples.HOSTILE,
    "\n---\nlicense: stolen\n---\n",
    "a: b # c",
    '"quoted" \\ \x85 \ufffe \uffff \ufeff \U0001f600',
    "- [x]: &a *b !!python/object:os.system",
    "no",
    "1e5",
    "'",
    "```\n# Not a heading",
)


@pytest.mark.parametrize("name", NASTY)
def test_names_of_others_stay_names(name: str) -> None:
    report = samples.hostile()
    report = replace(
        report,
        title=name,
        summary=name,
        model={**samples.passing().model, "name": name, "family": name, "hub_id": name},
        data={**report.data, "location": f"somewhere/{name}"},
        recipe={"quantization": name},
        target={"name": name, "description": name},
        notes=(name,),
        command=name,
        judgements=tuple({**j, "title": name} for j in report.judgements),
    )
    text = to_model_card(report)
    head = yaml.safe_load(text.split("---\n")[1])
    card = ModelCard(text)
    assert set(head) <= {
        "library_name", "pipeline_tag", "base_model", "base_model_relation", "tags", "model-index"
    }  # fmt: skip
    assert len(card.data.eval_results) == 1 + len(report.judgements)
    assert all(isinstance(tag, str) for tag in head["tags"])
    headings = [line for line in card.text.splitlines() if re.match(r"#+ ", line)]
    clean = ModelCard(to_model_card(samples.passing()))
    assert headings[1:] == [x for x in clean.text.splitlines() if re.match(r"#+ ", x)][1:]
    body = re.sub(r"(`{3,})sh\n.*?\n\1", "", card.text, flags=re.S)
    assert not re.search(r"(?<!\\)<", body)
    assert "\x1b" not in text
    assert to_model_card(report) == text


def test_a_plain_name_survives_as_it_is() -> None:
    for name in ("no", "1e5", "a: b # c", "\U0001f600"):
        head = yaml.safe_load(to_model_card(replace(samples.passing(), title=name)).split("---")[1])
        assert head["model-index"][0]["name"] == name


@pytest.mark.parametrize("task", ["text-generation", "text-classification", "feature-extraction",
                                  "image-classification"])  # fmt: skip
def test_it_tells_what_run_py_tells(task: str) -> None:
    """The card and the program that ships ask for the same packages."""
    report = replace(samples.passing(), model={"task": task})
    template = (TEMPLATES / f"run_{task.replace('-', '_')}.py").read_text(encoding="utf-8")
    needs = re.search(r"Needs: (pip install .*)", template)
    assert needs is not None
    assert needs[1] in to_model_card(report)


def test_what_it_says_runs(tmp_path: Path) -> None:
    model = tiny.checkpoint("bert", tmp_path / "bert")
    recipe = {"candidates": chain.RECIPE["candidates"][:1], "calibration_examples": 16}
    made = exporter.export(
        model,
        data=chain.text_data(tmp_path / "rows.jsonl"),
        target=chain.quick_target(recipe=recipe, accuracy_drop_points=20.0),
        out=tmp_path / "out",
        cache=tmp_path / "cache",
    )
    card = ModelCard.load(made.directory / "README.md")
    assert card.data.base_model == "bert"
    accuracy = next(r for r in card.data.eval_results if r.metric_type == "accuracy")
    drop = next(j for j in made.judgements if j.metric == "accuracy_drop_points")
    assert accuracy.metric_value == pytest.approx((drop.candidate or 0) / 100, abs=1e-5)
    line = next(x for x in card.text.splitlines() if x.startswith("python "))
    done = subprocess.run(
        [sys.executable, *shlex.split(line)[1:]],
        cwd=made.directory,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert any(label in done.stdout for label in tiny.LABELS)
