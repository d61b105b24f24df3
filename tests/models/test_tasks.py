"""Tasks: feeds are exact, scores do not depend on batching, losses mean what they say."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.budget import BUDGET_KINDS
from exporter.errors import DataError, ModelError
from exporter.models.examples import Development, Examples, Feeds, Outputs, Split, Test, Train
from exporter.models.load import LoadedModule, load_module
from exporter.models.runner import Run, torch_run
from exporter.models.source import resolve_source
from exporter.models.tasks import Task, get_task
from exporter.models.text import model_length
from exporter.recipe import TASKS
from tests.tiny import LABELS, checkpoint, label_of, sentences

GENERATE = get_task("text-generation")
CLASSIFY = get_task("text-classification")
EMBED = get_task("feature-extraction")
IMAGES = get_task("image-classification")


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LoadedModule]:
    root = tmp_path_factory.mktemp("checkpoints")
    loaded: dict[str, LoadedModule] = {}

    def get(family: str) -> LoadedModule:
        if family not in loaded:
            source = resolve_source(str(checkpoint(family, root / family)), task=None)
            loaded[family] = load_module(source)
        return loaded[family]

    return get


def text_split(count: int, role: Any = Development) -> Split[Any]:
    rows = [{"text": t, "label": LABELS.index(label_of(t))} for t in sentences(count)]
    return Split(role, rows, tuple(CLASSIFY.row_id(row) for row in rows))


def prepared(
    task: Task, loaded: LoadedModule, split: Split[Any], max_length: int = 64
) -> Examples[Any]:
    config = loaded.module.config.to_dict()
    return task.prepare(split, loaded.preprocessor, config, max_length=max_length)


def nan_run(run: Run) -> Run:
    return lambda feeds: {k: np.full_like(v, np.nan) for k, v in run(feeds).items()}


def test_tasks_are_complete_and_need_no_torch() -> None:
    for name in TASKS:
        task = get_task(name)
        assert task.name == name
        assert task.optional <= set(task.columns)
        assert all(name in (BUDGET_KINDS[m].tasks or ()) for m in task.metrics)
    with pytest.raises(ModelError, match="did you mean 'text-generation'"):
        get_task("text-generatoin")
    code = (
        "import sys; from exporter.models.tasks import get_task; from exporter.recipe import TASKS;"
        "import exporter.models.splits, exporter.models.load, exporter.models.source;"
        "list(map(get_task, TASKS)); assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
@pytest.mark.parametrize("max_length", [5, 16, 64])
def test_every_next_token_is_predicted_once(
    load: Callable[[str], LoadedModule], family: str, max_length: int
) -> None:
    loaded = load(family)
    split = text_split(20)
    examples = prepared(GENERATE, loaded, split, max_length)
    assert max(len(f["input_ids"]) for f in examples.feeds) <= max_length
    tokens = [len(row["text"].split()) for row in split.rows]  # after the beginning-of-text token
    predicted = np.zeros(20)
    np.add.at(predicted, list(examples.owner), [len(f["input_ids"]) - 1 for f in examples.feeds])
    np.testing.assert_array_equal(predicted, tokens)
    scores = GENERATE.score(torch_run(loaded.module), examples)
    np.testing.assert_array_equal(scores.values["tokens"], tokens)


def test_nll_is_that_of_the_model(load: Callable[[str], LoadedModule]) -> None:
    import torch

    loaded = load("gpt2")
    examples = prepared(GENERATE, loaded, text_split(20))
    scores = GENERATE.score(torch_run(loaded.module), examples)
    feed = torch.from_numpy(examples.feeds[3]["input_ids"][None])
    with torch.no_grad():
        expected = loaded.module(input_ids=feed, labels=feed).loss * (feed.shape[1] - 1)
        guess = loaded.module(input_ids=feed).logits[0, :-1].argmax(-1)
    assert scores.values["nll"][3] == pytest.approx(float(expected), rel=1e-5)
    assert scores.values["correct"][3] == float((guess == feed[0, 1:]).sum())


def scored(task: Task, loaded: LoadedModule, split: Split[Any], **how: int) -> Any:
    return task.score(torch_run(loaded.module), prepared(task, loaded, split), **how)


@pytest.mark.parametrize(
    ("task", "family"), [(GENERATE, "llama"), (CLASSIFY, "modernbert"), (EMBED, "bert-encoder")]
)
def test_scores_do_not_depend_on_batching(
    load: Callable[[str], LoadedModule], task: Task, family: str
) -> None:
    one = scored(task, load(family), text_split(23))
    for how in ({"batch_size": 7}, {"batch_size": 4, "workers": 2}, {"workers": 3}):
        other = scored(task, load(family), text_split(23), **how)
        assert other.ids == one.ids
        for name, values in one.values.items():
            np.testing.assert_allclose(other.values[name], values, atol=2e-4)


@pytest.mark.parametrize(
    ("task", "family"), [(GENERATE, "gpt2"), (CLASSIFY, "bert"), (EMBED, "bert-encoder")]
)
def test_nan_is_never_right(load: Callable[[str], LoadedModule], task: Task, family: str) -> None:
    loaded = load(family)
    examples = prepared(task, loaded, text_split(21))
    good = task.score(torch_run(loaded.module), examples)
    broken = task.score(nan_run(torch_run(loaded.module)), examples)
    assert broken.values["correct"].sum() == 0
    if "nll" in broken.values:
        assert np.isnan(broken.values["nll"]).all()
    else:
        assert np.isnan(task.relate(good, broken).values["cosine"]).all()


def test_classification_counts_the_right_answers(load: Callable[[str], LoadedModule]) -> None:
    examples = prepared(CLASSIFY, load("bert"), text_split(40))
    assert examples.labels is not None

    def oracle(feeds: Feeds) -> Outputs:
        index = [
            i
            for row in feeds["input_ids"]
            for i, f in enumerate(examples.feeds)
            if np.array_equal(f["input_ids"], row)
        ]
        right = np.eye(3)[examples.labels[index]] * 9  # type: ignore[index]
        right[np.asarray(index) % 4 == 0] *= -1  # every fourth answer is wrong
        return {"logits": right.astype(np.float32)}

    scores = CLASSIFY.score(oracle, examples)
    np.testing.assert_array_equal(scores.values["correct"], np.arange(40) % 4 != 0)
    assert scores.summary()["accuracy"] == 0.75
    assert scores.values["nll"][1] == pytest.approx(np.log(1 + 2 * np.exp(-9)), rel=1e-4)
    assert examples.meta == {"labels": list(LABELS)}


def test_model_with_fewer_classes_than_labels(load: Callable[[str], LoadedModule]) -> None:
    examples = prepared(CLASSIFY, load("bert"), text_split(40))
    with pytest.raises(DataError, match="below the model's 1 classes"):
        CLASSIFY.score(lambda feeds: {"y": np.zeros((len(feeds["input_ids"]), 1))}, examples)


def test_pairs_and_truncation(load: Callable[[str], LoadedModule]) -> None:
    loaded = load("bert")
    rows = [{"text": "cat " * 50, "text_pair": "dog " * 50, "label": 0}] * 2
    split: Split[Train] = Split(Train, rows, ("a", "b"))
    config = loaded.module.config.to_dict()
    examples = CLASSIFY.prepare(split, loaded.preprocessor, config, max_length=20)
    assert len(examples.feeds[0]["input_ids"]) == 20
    lone = CLASSIFY.row_id({"text": "cat", "label": 0})
    assert lone != CLASSIFY.row_id({"text": "cat", "text_pair": "dog", "label": 0})
    assert lone == CLASSIFY.row_id({"text": "cat", "label": 1})
    bad: Split[Train] = Split(Train, [{"text": None, "label": 0}], ("a",))
    with pytest.raises(DataError, match="every text must be text"):
        CLASSIFY.prepare(bad, loaded.preprocessor, config, max_length=20)


def test_embeddings_find_their_own_half(load: Callable[[str], LoadedModule]) -> None:
    loaded = load("bert-encoder")
    split = text_split(60)
    split = Split(split.role, [*split.rows, {"text": "too short", "label": 0}], (*split.ids, "z"))
    examples = prepared(EMBED, loaded, split)
    long_enough = sum(len(row["text"].split()) >= 8 for row in split.rows)
    assert len(examples) == long_enough
    assert len(examples.feeds) == 2 * long_enough
    vectors = np.eye(long_enough, dtype=np.float32)

    def run(feeds: Feeds) -> Outputs:
        (feed,) = feeds["input_ids"]
        (i,) = [
            examples.owner[j]
            for j, f in enumerate(examples.feeds)
            if np.array_equal(f["input_ids"], feed)
        ]
        return {"embedding": vectors[None, i]}

    assert EMBED.score(run, examples).summary()["recall_at_1"] == 1.0
    same = EMBED.score(lambda feeds: {"embedding": np.ones((1, 4), np.float32)}, examples)
    assert same.summary()["recall_at_1"] == 0.0
    vectors[3] = vectors[4]
    assert EMBED.score(run, examples).values["correct"].sum() == long_enough - 2


def test_the_same_document_twice_is_no_rival(load: Callable[[str], LoadedModule]) -> None:
    loaded = load("bert-encoder")
    document = "cat dog bird fish"
    rows = [
        {"text": query, "positive": answer}
        for query, answer in (("a red cat", document), ("the dog", document), ("one", "tree"))
    ]
    split: Split[Test] = Split(Test, rows, tuple(EMBED.row_id(row) for row in rows))
    examples = prepared(EMBED, loaded, split)
    assert loaded.preprocessor is not None
    ours = loaded.preprocessor("tree one")["input_ids"][1:-1]

    def run(feeds: Feeds) -> Outputs:
        is_tree = np.isin(feeds["input_ids"], ours)
        return {"embedding": np.eye(2, dtype=np.float32)[is_tree.any(1).astype(int)]}

    np.testing.assert_array_equal(EMBED.score(run, examples).values["correct"], 1)


def test_distillation_is_the_softened_divergence() -> None:
    import torch

    student, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    p = np.exp([0, 1]) / np.exp([0, 1]).sum()  # teacher at temperature 2
    q = np.exp([0.5, 0]) / np.exp([0.5, 0]).sum()
    loss = CLASSIFY.distill_loss({"logits": student}, {"logits": teacher}, {}, 2.0)
    assert float(loss) == pytest.approx(4 * (p * np.log(p / q)).sum(), rel=1e-5)


def test_cosine_to_the_reference(load: Callable[[str], LoadedModule]) -> None:
    loaded = load("bert-encoder")
    examples = prepared(EMBED, loaded, text_split(30))
    run = torch_run(loaded.module)
    reference = EMBED.score(run, examples)
    np.testing.assert_allclose(EMBED.relate(reference, reference).values["cosine"], 1, atol=1e-5)

    def flipped(feeds: Feeds) -> Outputs:
        return {"last_hidden_state": -run(feeds)["last_hidden_state"]}

    related = EMBED.relate(reference, EMBED.score(flipped, examples))
    np.testing.assert_allclose(related.values["cosine"], -1, atol=1e-5)
    assert EMBED.relate(reference, related).summary()["cosine"] == pytest.approx(-1)


def test_embeddings_of_plain_feeds_are_judged_by_their_neighbours() -> None:
    rng = np.random.default_rng(0)
    rows = [{"x": rng.standard_normal(6, np.float32)} for _ in range(30)]
    split: Split[Test] = Split(Test, rows, tuple(EMBED.row_id(row) for row in rows))
    examples = EMBED.prepare(split, None, {}, max_length=1)
    reference = EMBED.score(lambda feeds: {"y": feeds["x"]}, examples)
    assert EMBED.relate(reference, reference).summary()["recall_at_1"] == 1.0
    other = EMBED.score(lambda feeds: {"y": feeds["x"] * [1, 1, 0, 0, 0, 0]}, examples)
    assert 0 < EMBED.relate(reference, other).summary()["recall_at_1"] < 1


@pytest.mark.parametrize("family", ["vit", "mobilenetv2"])
def test_images_of_every_kind_give_the_same_pixels(
    load: Callable[[str], LoadedModule], tmp_path: Path, family: str
) -> None:
    from PIL import Image

    loaded = load(family)
    array = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
    file = tmp_path / "a.png"
    Image.fromarray(array).save(file)
    kinds = [array, array / 255, Image.fromarray(array), str(file), {"bytes": file.read_bytes()}]
    rows = [{"image": kind, "label": i % 3} for i, kind in enumerate(kinds)]
    assert len({IMAGES.row_id(row) for row in rows}) == 1
    split: Split[Test] = Split(Test, rows, tuple("abcde"))
    examples = prepared(IMAGES, loaded, split)
    for feed in examples.feeds:
        np.testing.assert_array_equal(feed["pixel_values"], examples.feeds[0]["pixel_values"])
    scores = IMAGES.score(torch_run(loaded.module), examples, batch_size=2)
    np.testing.assert_array_equal(scores.values["label"], [0, 1, 2, 0, 1])
    assert len(set(scores.values["prediction"])) == 1
    config = loaded.module.config.to_dict()
    feeds = IMAGES.example_feeds(config, loaded.preprocessor, batch=3, length=1)
    assert feeds["pixel_values"].shape[1:] == examples.feeds[0]["pixel_values"].shape
    assert torch_run(loaded.module)(feeds)["logits"].shape == (3, 3)
    bare = IMAGES.example_feeds(config, None, batch=2, length=1)
    assert bare["pixel_values"].shape[1:] == feeds["pixel_values"].shape[1:]


def test_grey_images(load: Callable[[str], LoadedModule]) -> None:
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    one = ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.5], image_std=[0.5])
    rows = [{"image": np.full((9, 9), 40, np.uint8), "label": 1}]
    split: Split[Test] = Split(Test, rows, ("a",))
    grey = IMAGES.prepare(split, one, {"num_channels": 1}, max_length=1)
    assert grey.feeds[0]["pixel_values"].shape == (1, 16, 16)
    processor = load("vit").preprocessor
    colour = IMAGES.prepare(split, processor, {}, max_length=1)
    assert colour.feeds[0]["pixel_values"].shape == (3, 16, 16)
    feeds = IMAGES.example_feeds({"num_channels": 1}, one, batch=2, length=1)
    assert feeds["pixel_values"].shape == (2, 1, 16, 16)
    with pytest.raises(ModelError, match="image processor must fit"):
        IMAGES.prepare(split, processor, {"num_channels": 1}, max_length=1)


def test_raw_rows_without_a_preprocessor_are_refused() -> None:
    with pytest.raises(ModelError, match="must come with a tokenizer"):
        CLASSIFY.prepare(text_split(3), None, {}, max_length=8)
    with pytest.raises(ModelError, match="vocabulary size"):
        CLASSIFY.example_feeds({}, None, batch=1, length=4)


@pytest.mark.parametrize(
    ("task", "family"),
    [
        (GENERATE, "gpt2"),
        (GENERATE, "gemma3"),
        (CLASSIFY, "bert"),
        (CLASSIFY, "modernbert"),
        (EMBED, "bert-encoder"),
    ],
)
def test_example_feeds_run(load: Callable[[str], LoadedModule], task: Task, family: str) -> None:
    loaded = load(family)
    config = loaded.module.config.to_dict()
    feeds = task.example_feeds(config, loaded.preprocessor, batch=2, length=9)
    assert all(array.shape == (2, 9) for array in feeds.values())
    again = task.example_feeds(config, loaded.preprocessor, batch=2, length=9)
    np.testing.assert_array_equal(feeds["input_ids"], again["input_ids"])
    assert all(np.isfinite(a).all() for a in torch_run(loaded.module)(feeds).values())


@pytest.mark.parametrize(
    ("task", "family"), [(GENERATE, "qwen3"), (CLASSIFY, "bert"), (EMBED, "bert-encoder")]
)
def test_distillation_is_zero_only_for_equals_and_ignores_padding(
    load: Callable[[str], LoadedModule], task: Task, family: str
) -> None:
    import torch

    loaded = load(family)
    examples = prepared(task, loaded, text_split(8))
    batch = next(examples.batches(4))
    feeds = {k: torch.from_numpy(v) for k, v in batch.feeds.items()}
    wide = {k: torch.nn.functional.pad(v, (0, 6)) for k, v in feeds.items()}
    with torch.no_grad():
        teacher = loaded.module(**feeds)
        padded = loaded.module(**wide)
        noise = {
            k: v + torch.randn(v.shape, generator=torch.manual_seed(0))
            for k, v in teacher.items()
            if isinstance(v, torch.Tensor)
        }
        assert float(task.distill_loss(teacher, teacher, feeds, 2.0)) == pytest.approx(0, abs=1e-6)
        far = float(task.distill_loss(noise, teacher, feeds, 2.0))
        assert far > 0.01
        wide_loss = task.distill_loss(padded, padded, wide, 2.0)
        assert float(wide_loss) == pytest.approx(0, abs=1e-6)
        labels = None if batch.labels is None else torch.from_numpy(batch.labels)
        loss = task.task_loss(teacher, feeds, labels)
        loss_padded = task.task_loss(padded, wide, labels)
    if task is EMBED:
        assert loss is None
    else:
        assert loss is not None
        assert loss_padded is not None
        assert float(loss) == pytest.approx(float(loss_padded), rel=1e-4)


def test_task_loss_agrees_with_scores(load: Callable[[str], LoadedModule]) -> None:
    import torch

    for task, family in ((GENERATE, "llama"), (CLASSIFY, "bert")):
        loaded = load(family)
        examples = prepared(task, loaded, text_split(6))
        batch = next(examples.batches(6))
        feeds = {k: torch.from_numpy(v) for k, v in batch.feeds.items()}
        labels = None if batch.labels is None else torch.from_numpy(batch.labels)
        with torch.no_grad():
            loss = task.task_loss(loaded.module(**feeds), feeds, labels)
        scores = task.score(torch_run(loaded.module), examples)
        count = scores.values["tokens"].sum() if task is GENERATE else 6
        assert loss is not None
        assert float(loss) == pytest.approx(scores.values["nll"].sum() / count, rel=1e-4)


def test_token_types_only_where_the_model_reads_them(
    load: Callable[[str], LoadedModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load("bert").preprocessor
    split = text_split(4)
    emitted = ["input_ids", "token_type_ids", "attention_mask"]
    for family in ("bert", "modernbert"):
        config = load(family).module.config.to_dict()
        monkeypatch.setattr(tokenizer, "model_input_names", emitted)
        made = CLASSIFY.prepare(split, tokenizer, config, max_length=20).feeds[0]
        example = CLASSIFY.example_feeds(config, tokenizer, batch=1, length=5)
        assert ("token_type_ids" in made) == (family == "bert")
        assert set(made) == set(example)


def test_rows_that_are_tokens_already_pass_through(load: Callable[[str], LoadedModule]) -> None:
    loaded = load("bert")
    rows = [
        {"input_ids": np.array([2, 9, 3][:n]), "attention_mask": np.ones(n, np.int64), "label": 1}
        for n in (2, 3)
    ]
    split: Split[Test] = Split(Test, rows, tuple(CLASSIFY.row_id(row) for row in rows))
    assert len(set(split.ids)) == 2
    for preprocessor in (loaded.preprocessor, None):
        examples = CLASSIFY.prepare(split, preprocessor, {}, max_length=9)
        one = CLASSIFY.score(torch_run(loaded.module), examples)
        two = CLASSIFY.score(torch_run(loaded.module), examples, batch_size=2)
        np.testing.assert_allclose(one.values["nll"], two.values["nll"], atol=1e-5)


def test_token_rows_in_which_nothing_can_be_predicted_are_left_out() -> None:
    task = get_task("text-generation")
    one, two = np.array([7]), np.array([7, 8])
    rows: list[dict[str, Any]] = [
        {"input_ids": one},
        {"input_ids": two},
        {"input_ids": two, "attention_mask": np.array([1, 0])},
        {"input_ids": two, "attention_mask": np.array([1, 1])},
    ]
    rows = [{"attention_mask": np.ones_like(row["input_ids"]), **row} for row in rows]
    split = Split(Test, rows, ("a", "b", "c", "d"))
    examples = task.prepare(split, None, {}, max_length=8)
    assert examples.ids == ("b", "d")
    assert len(examples.feeds) == len(examples.owner) == 2
    assert task.prepare(split, None, {}, max_length=8, limit=1).ids == ("b",)
    with pytest.raises(DataError, match="the test split: must hold a document of at least two"):
        task.prepare(Split(Test, rows[:1], ("a",)), None, {}, max_length=8)


def test_length_is_capped_by_what_the_model_has_positions_for() -> None:
    class Tokenizer:
        model_max_length = 40

    assert model_length(Tokenizer(), {}, 99) == 40
    assert model_length(Tokenizer(), {}, 30) == 30
    assert model_length(Tokenizer(), {"max_position_embeddings": 20}, 99) == 20
    roberta = {"model_type": "roberta", "max_position_embeddings": 20, "pad_token_id": 1}
    assert model_length(Tokenizer(), roberta, 99) == 18


def test_limit_takes_whole_documents(load: Callable[[str], LoadedModule]) -> None:
    loaded = load("gpt2")
    config = loaded.module.config.to_dict()
    split = text_split(20)
    few = GENERATE.prepare(split, loaded.preprocessor, config, max_length=4, limit=5)
    assert few.ids == split.ids[:5]
    whole = prepared(GENERATE, loaded, split, 4).head(5)
    assert len(few.feeds) == len(whole.feeds)
