import json
import re
from pathlib import Path

import pytest

from exporter.errors import DataError
from sample_models import docstring_classifier as classifier
from sample_models import sources
from sample_models.sources import Document, standard_library
from tests import tiny
from tests.sample_models.recorded import Recorded

COUNTS = {"test": 30, "development": 20, "calibration": 10}


def test_mask_removes_libraries_and_imports_and_keeps_the_rest() -> None:
    text = """Multiply two tensors with torch.matmul, as NumPy's np.dot does.

    >>> import pandas as pd
    >>> from sympy.abc import x
    >>> nx.draw(PyTorch_graph)
    """
    masked = classifier.mask(text)
    assert not re.search(r"torch|numpy|np\.|pandas|sympy|nx\.|import", masked, re.IGNORECASE)
    assert masked.startswith("Multiply two tensors with")
    assert "dot does." in masked
    assert "draw(" in masked


def test_mask_keeps_the_beginning_up_to_a_word() -> None:
    words = "alpha beta gamma " * 100
    masked = classifier.mask(words)
    assert 380 < len(masked) <= classifier.CHARACTERS_MAX
    assert words.startswith(masked + " ")


def test_parts_are_their_own_class() -> None:
    assert classifier.label_of("scipy/stats/_morestats.py") == "scipy.stats"
    assert classifier.label_of("scipy/optimize/_root.py") == "scipy"
    assert classifier.label_of("torch/distributed/rpc/api.py") == "torch.distributed"
    assert classifier.label_of("standard library/json/decoder.py") == "standard library"


def test_docstrings_are_found_at_every_level() -> None:
    source = '''"""Module text that is long enough to say something about what it documents."""
class A:
    """Class text that is long enough to say something about what it documents."""
    if True:
        def method(self):
            """Method text that is long enough to say something about what it documents."""
            async def inner():
                """Inner text that is long enough to say something about what it documents."""
def short():
    """Too short."""
'''
    found = classifier.docstrings([Document("numpy/a.py", source)])
    assert sorted(text.split()[0] for text, _ in found) == ["Class", "Inner", "Method", "Module"]
    assert {label for _, label in found} == {"numpy"}
    assert classifier.docstrings([Document("numpy/broken.py", "def (")]) == []


def test_near_duplicates_are_kept_once_and_contradictions_not_at_all() -> None:
    base = [(text, tiny.label_of(text)) for text in tiny.sentences(300)]
    copy = (base[0][0] + " .", base[0][1])
    other = (base[1][0], "another library")
    rows = classifier.split_docstrings([*base, copy, other], COUNTS)
    texts = [row["text"] for part in rows.values() for row in part]
    assert len(texts) == len(set(texts))
    assert not {base[0][0], copy[0]} <= set(texts)
    assert base[1][0] not in texts
    assert [len(rows[name]) for name in COUNTS] == list(COUNTS.values())


def test_a_class_gives_no_more_than_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "PER_CLASS_MAX", 40)
    labelled = [(text, tiny.label_of(text)) for text in tiny.sentences(400)]
    rows = classifier.split_docstrings(labelled, COUNTS)
    labels = [row["label"] for part in rows.values() for row in part]
    assert labels
    assert max(labels.count(name) for name in set(labels)) <= 40


def test_batches_hold_similar_lengths_and_cover_an_epoch() -> None:
    lengths = [(7 * i) % 100 + 1 for i in range(640)]
    batches = classifier.bucketed(lengths, batch=32, steps=25)
    assert len(batches) == 25
    assert sorted(i for batch in batches[:20] for i in batch.tolist()) == list(range(640))
    spread = [max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in batches]
    assert sum(spread) / len(spread) < 15


def test_make_gives_an_ordinary_checkpoint_that_knows_its_labels(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    encoder = tiny.checkpoint("bert-encoder", tmp_path / "encoder")
    for name in ("out", "scratch"):
        (tmp_path / name).mkdir()
    labelled = [(text, tiny.label_of(text)) for text in tiny.sentences(300)]
    classifier.make(
        tmp_path / "out",
        tmp_path / "scratch",
        labelled=labelled,
        encoder=encoder,
        size=classifier.Size(batch=8, steps=5, tokens=32),
        counts=COUNTS,
        progress=Recorded(),
    )
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "model")
    assert model.config.label2id == {name: i for i, name in enumerate(sorted(tiny.LABELS))}
    assert AutoTokenizer.from_pretrained(tmp_path / "out" / "model").model_max_length == 32
    seen: set[str] = set()
    for name in ("train", *COUNTS):
        lines = (tmp_path / "out" / "data" / f"{name}.jsonl").read_text(encoding="utf-8")
        texts = {json.loads(line)["text"] for line in lines.splitlines()}
        assert not texts & seen
        seen |= texts


def test_the_standard_library_alone_gives_thousands() -> None:
    found = classifier.docstrings(
        [Document(f"standard library/{d.path}", d.text) for d in standard_library()]
    )
    assert len(found) > 4_000
    assert {label for _, label in found} == {"standard library"}
    assert not [t for t, _ in found if re.search("python", t, re.IGNORECASE)]


def test_a_missing_package_is_told_with_its_remedy() -> None:
    with pytest.raises(DataError, match=r"no-such-thing: must be installed .* samples"):
        sources.package("no_such_thing", "no-such-thing")
