"""How far one model's answers are from another's: KL as torch computes it, slices as rows say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.errors import DataError
from exporter.models.examples import Development, Examples, Split, load_examples
from exporter.models.load import LoadedModule, load_module
from exporter.models.runner import torch_run
from exporter.models.scores import load_scores
from exporter.models.slices import sliced
from exporter.models.source import resolve_source
from exporter.models.splits import make_splits
from exporter.models.tasks import get_task
from exporter.models.tokens import divergence
from tests import chain
from tests.tiny import LABELS, checkpoint, label_of, sentences

GENERATE, CLASSIFY = get_task("text-generation"), get_task("text-classification")


def pair(family: str, root: Path) -> tuple[LoadedModule, LoadedModule]:
    """The same architecture with two sets of weights."""
    one, two = (
        load_module(
            resolve_source(str(checkpoint(family, root / f"{family}-{i}", seed=i)), task=None)
        )
        for i in (0, 1)
    )
    return one, two


def examples_of(task: Any, loaded: LoadedModule, count: int, length: int = 64) -> Examples[Any]:
    rows = [{"text": t, "label": LABELS.index(label_of(t))} for t in sentences(count)]
    split: Split[Any] = Split(Development, rows, tuple(task.row_id(row) for row in rows))
    prepared = task.prepare(
        split, loaded.preprocessor, loaded.module.config.to_dict(), max_length=length
    )
    return sliced(prepared, split)


def test_divergence_is_torchs() -> None:
    import torch

    draws = np.random.default_rng(0).normal(0, 3, (2, 50, 300)).astype(np.float32)
    ours, theirs = (torch.log_softmax(torch.from_numpy(d), -1) for d in draws)
    expected = torch.nn.functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(1)
    np.testing.assert_allclose(
        divergence(theirs.numpy(), ours.numpy()), expected.numpy(), rtol=1e-4
    )


def test_divergence_at_the_edges() -> None:
    sure = np.asarray([[0.0, -np.inf]], np.float32)
    even = np.log(np.full((1, 2), 0.5, np.float32))
    assert divergence(sure, sure)[0] == 0
    assert divergence(sure, even)[0] == pytest.approx(np.log(2))
    assert divergence(even, sure)[0] == np.inf
    assert np.isnan(divergence(np.full((1, 2), np.nan, np.float32), even)[0])


def test_a_language_models_divergence_token_by_token(tmp_path: Path) -> None:
    import torch

    one, two = pair("qwen3", tmp_path)
    examples = examples_of(GENERATE, one, 20, length=6)  # several windows a document
    run, other = torch_run(one.module), torch_run(two.module)
    scores = GENERATE.score(other, examples, against=run)
    expected = np.zeros(20)
    flips = np.zeros(20)
    for feed, owner in zip(examples.feeds, examples.owner, strict=True):
        ids = torch.from_numpy(feed["input_ids"][None])
        with torch.no_grad():
            theirs = torch.log_softmax(one.module(input_ids=ids).logits[0, :-1], -1)
            ours = torch.log_softmax(two.module(input_ids=ids).logits[0, :-1], -1)
        expected[owner] += float((theirs.exp() * (theirs - ours)).sum())
        flips[owner] += int((theirs.argmax(-1) != ours.argmax(-1)).sum())
    np.testing.assert_allclose(scores.values["kl"], expected, rtol=1e-4)
    np.testing.assert_array_equal(scores.values["flipped"], flips)
    assert len(scores.arrays["token_kl"]) == scores.values["tokens"].sum()
    # its own scores are what they are without a reference, whatever the batch
    alone = GENERATE.score(other, examples)
    for how in ({}, {"batch_size": 5, "workers": 2}):
        again = GENERATE.score(other, examples, against=run, **how)
        for name in alone.values:
            np.testing.assert_allclose(again.values[name], alone.values[name], atol=2e-4)
        np.testing.assert_allclose(again.arrays["token_kl"], scores.arrays["token_kl"], atol=2e-3)

    same = GENERATE.score(run, examples, against=run)
    assert same.values["kl"].sum() == pytest.approx(0, abs=1e-4)
    assert same.values["flipped"].sum() == 0
    assert (same.arrays["surprise"] == -1).all()


def test_the_surprise_is_where_the_models_differ_most(tmp_path: Path) -> None:
    one, two = pair("gpt2", tmp_path)
    examples = examples_of(GENERATE, one, 20)
    run, other = torch_run(one.module), torch_run(two.module)
    scores = GENERATE.score(other, examples, against=run)
    differ = 0
    for nats, feed, position, theirs, ours in scores.arrays["surprise"]:
        if nats < 0:
            continue
        differ += 1
        ids = {k: v[None] for k, v in examples.feeds[int(feed)].items()}
        assert run(ids)["logits"][0, int(position)].argmax() == theirs
        assert other(ids)["logits"][0, int(position)].argmax() == ours
        assert theirs != ours
    assert differ > 5


def test_a_classifiers_divergence(tmp_path: Path) -> None:
    import torch

    one, two = pair("bert", tmp_path)
    examples = examples_of(CLASSIFY, one, 21)
    before = CLASSIFY.score(torch_run(one.module), examples)
    after = CLASSIFY.relate(before, CLASSIFY.score(torch_run(two.module), examples))
    ids = {k: torch.from_numpy(v[None]) for k, v in examples.feeds[4].items()}
    with torch.no_grad():
        theirs, ours = (torch.log_softmax(m.module(**ids).logits[0], -1) for m in (one, two))
    assert after.values["kl"][4] == pytest.approx(
        float((theirs.exp() * (theirs - ours)).sum()), rel=1e-4
    )
    assert CLASSIFY.relate(before, before).values["kl"].max() == 0
    assert set(after.slices["label"]) == set(LABELS)
    shorter = CLASSIFY.score(torch_run(one.module), examples.head(5))
    with pytest.raises(DataError, match="as many classes"):
        CLASSIFY.relate(shorter, after)


def test_evidence_keeps_what_a_verdict_rests_on(tmp_path: Path) -> None:
    one, two = pair("qwen3", tmp_path)
    examples = examples_of(GENERATE, one, 20)
    scores = GENERATE.score(torch_run(two.module), examples, against=torch_run(one.module))
    scores.evidence().save(tmp_path, "candidate")
    loaded = load_scores(tmp_path, "candidate")
    assert set(loaded.arrays) == {"token_kl"}
    np.testing.assert_array_equal(loaded.arrays["token_kl"], scores.arrays["token_kl"])
    for name, values in scores.values.items():
        np.testing.assert_array_equal(loaded.values[name], values)


def _rows(path: Path) -> Path:
    rows = [
        {"text": text, "label": label_of(text), "source": ["web", "mail", None][i % 3]}
        for i, text in enumerate(sentences(200))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_slices_follow_the_rows_through_splits_and_disk(tmp_path: Path) -> None:
    data = _rows(tmp_path / "rows.jsonl")
    truth = {json.loads(line)["text"]: json.loads(line)["source"] for line in data.open()}
    splits = make_splits(str(data), CLASSIFY, slices=["source"])
    model = resolve_source(str(checkpoint("bert", tmp_path / "bert")), task=None)
    loaded = load_module(model)
    for split in (splits.development, splits.test):
        made = CLASSIFY.prepare(split, loaded.preprocessor, model.config, max_length=64)
        made = sliced(made, split)
        expected = tuple(truth[row["text"]] or "" for row in split.rows)
        assert made.slices["source"] == expected
        assert made.slices["label"] == tuple(label_of(row["text"]) for row in split.rows)
        made.save(tmp_path)
        again = load_examples(tmp_path, split.role)
        assert again.slices == made.slices
        assert again.head(3).slices["label"] == made.slices["label"][:3]
        scores = CLASSIFY.score(torch_run(loaded.module), again)
        scores.save(tmp_path, "x")
        assert load_scores(tmp_path, "x").slices == made.slices
    # what divides the examples divides no split
    plain = make_splits(str(data), CLASSIFY)
    assert plain.test.ids == splits.test.ids


def test_examples_of_another_version_are_refused(tmp_path: Path) -> None:
    one = {"input_ids": np.array([1, 2])}
    Examples(Development, ("a",), (one,), (0,), None, {}).save(tmp_path)
    facts = json.loads((tmp_path / "examples.json").read_text())
    del facts["slices"]
    (tmp_path / "examples.json").write_text(json.dumps(facts))
    with pytest.raises(DataError, match="prepared by another version: it has no 'slices'"):
        load_examples(tmp_path, Development)


def test_a_slice_that_is_no_column_is_refused(tmp_path: Path) -> None:
    data = chain.text_data(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match=r"--slice region.*got text, label"):
        make_splits(str(data), CLASSIFY, slices=["region"])
