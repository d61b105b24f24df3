import json
from pathlib import Path

import pytest

from exporter.cache import Cache
from sample_models import code_lm
from sample_models.__main__ import main
from sample_models.sources import Document, standard_library
from tests.sample_models.recorded import Recorded

TINY = code_lm.Size(
    hidden=32,
    layers=1,
    heads=2,
    kv_heads=1,
    head_dim=16,
    intermediate=32,
    batch=2,
    steps=6,
    muon_rate=0.02,
    adam_rate=6e-3,
    vocabulary=320,
    context=32,
)
COUNTS = {"test": 5, "development": 4, "calibration": 2}


def few_documents() -> list[Document]:
    wanted = ("json/", "email/", "logging/", "html/", "urllib/")
    return [d for d in standard_library() if d.path.startswith(wanted)]


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return few_documents()


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, documents: list[Document]) -> None:
    monkeypatch.setitem(code_lm.SIZES, "small", TINY)
    monkeypatch.setattr(code_lm, "COUNTS", COUNTS)
    monkeypatch.setattr(code_lm, "standard_library", lambda: documents)


def test_standard_library_has_its_modules_and_neither_tests_nor_packages() -> None:
    paths = {d.path for d in standard_library()}
    assert {"argparse.py", "json/decoder.py"} <= paths
    assert not [p for p in paths if p.startswith(("test/", "site-packages/", "encodings/"))]
    assert len(paths) > 400


def test_near_duplicate_files_lie_on_one_side(documents: list[Document]) -> None:
    for original in documents[:25]:
        copy = Document(f"copy/{original.path}", original.text + "\n# one more line\n")
        rows = code_lm.split_documents([*documents, copy], COUNTS)
        side = {row["path"]: name for name, part in rows.items() for row in part}
        assert side.get(original.path) == side.get(copy.path)


def test_evaluation_documents_are_cut_at_a_line_and_train_is_whole(
    documents: list[Document],
) -> None:
    whole = {d.path: d.text for d in documents}
    rows = code_lm.split_documents(documents, COUNTS)
    assert all(row["text"] == whole[row["path"]] for row in rows["train"])
    cut = [r for n in COUNTS for r in rows[n] if r["text"] != whole[r["path"]]]
    assert cut
    for row in cut:
        assert whole[row["path"]].startswith(row["text"])
        assert row["text"].endswith("\n")
        assert len(row["text"]) <= code_lm.CHARACTERS_MAX


def test_build_gives_an_ordinary_checkpoint_with_disjoint_data_and_reuses_it(
    tiny: None, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = code_lm.build(cache=Cache(tmp_path))
    model = AutoModelForCausalLM.from_pretrained(directory / "model")
    tokenizer = AutoTokenizer.from_pretrained(directory / "model")
    assert model.config.model_type == "qwen3"
    assert len(tokenizer) == model.config.vocab_size == TINY.vocabulary
    text = "    def é(self):\n\treturn None  # ok\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text

    paths: list[str] = []
    for name in ("train", *COUNTS):
        lines = (directory / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        assert len(rows) >= COUNTS.get(name, 20)
        assert all(set(row) == {"text", "path"} for row in rows)
        paths += [row["path"] for row in rows]
    assert len(paths) == len(set(paths))

    again = Recorded()
    assert code_lm.build(cache=Cache(tmp_path), progress=again) == directory
    assert again.stages == []


def test_other_data_or_another_size_is_another_sample(
    tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, documents: list[Document]
) -> None:
    cache = Cache(tmp_path)
    first = code_lm.build(cache=cache)
    monkeypatch.setattr(code_lm, "standard_library", lambda: documents[:-1])
    assert code_lm.build(cache=cache) != first


def test_training_lowers_the_loss(documents: list[Document], tmp_path: Path) -> None:
    import dataclasses

    import numpy as np
    import torch

    size = dataclasses.replace(TINY, steps=60, batch=8)
    tokenizer = code_lm.train_tokenizer([d.text for d in documents], size)
    stream = code_lm.encode(tokenizer, [d.text for d in documents])
    model = code_lm.fit(stream, size, tmp_path, Recorded())
    ids = torch.from_numpy(stream[: 32 * 32].reshape(32, 32))
    with torch.no_grad():
        loss = float(model(input_ids=ids, labels=ids).loss)
    assert loss < 0.85 * np.log(size.vocabulary)


def test_command_prints_the_directory_and_nothing_else(
    tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EXPORTER_CACHE", str(tmp_path))
    assert main(["code_lm"]) == 0
    printed = capfd.readouterr().out.splitlines()
    assert len(printed) == 1
    assert (Path(printed[0]) / "model" / "config.json").is_file()


def test_size_is_only_for_code_lm() -> None:
    with pytest.raises(SystemExit) as stop:
        main(["digits", "--size", "base"])
    assert stop.value.code == 2
