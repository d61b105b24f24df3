"""A small decoder that writes Python: Qwen3's architecture, trained on the standard library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from exporter.cache import Cache
from exporter.progress import Progress, Silent
from sample_models.sources import Document, content_hash, standard_library
from sample_models.splitting import deal, near_duplicates, write_jsonl
from sample_models.stored import stored
from sample_models.training import train

if TYPE_CHECKING:
    import torch

END = "<|endoftext|>"
CHARACTERS_MIN = 600  # shorter files are mostly re-exports
CHARACTERS_MAX = 10_000  # of an evaluation document: many files say more than few long ones
COUNTS = {"test": 90, "development": 26, "calibration": 12}


@dataclass(frozen=True)
class Size:
    """Shape and training of one size; widths are multiples of 32 so that every block
    quantizer divides them."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    batch: int
    steps: int
    muon_rate: float
    adam_rate: float
    vocabulary: int = 2048
    context: int = 256


SIZES = {
    "small": Size(192, 4, 4, 2, 48, 576, batch=8, steps=250, muon_rate=0.02, adam_rate=6e-3),
    "base": Size(384, 6, 6, 2, 64, 1024, batch=16, steps=350, muon_rate=0.01, adam_rate=3e-3),
}


def build(
    size: str = "small", *, cache: Cache | None = None, progress: Progress | None = None
) -> Path:
    """The directory of the sample, with `model/` and `data/`; trained if it is not there."""
    progress = progress or Silent()
    documents = standard_library()
    settings = {"size": asdict(SIZES[size]), "data": content_hash(documents), "counts": COUNTS}
    return stored(
        f"code_lm-{size}",
        Path(__file__),
        settings,
        lambda out, scratch: make(
            out, scratch, documents=documents, size=SIZES[size], counts=COUNTS, progress=progress
        ),
        cache,
    )


def make(
    out: Path,
    scratch: Path,
    *,
    documents: Sequence[Document],
    size: Size,
    counts: dict[str, int],
    progress: Progress,
) -> None:
    """Fill `out` with data and a model trained on its train split."""
    rows = split_documents(documents, counts)
    (out / "data").mkdir()
    for name, part in rows.items():
        write_jsonl(out / "data" / f"{name}.jsonl", part)
    with progress.stage("code_lm: tokenizer"):
        tokenizer = train_tokenizer([row["text"] for row in rows["train"]], size)
    stream = encode(tokenizer, [row["text"] for row in rows["train"]])
    progress.note(f"code_lm: {len(rows['train'])} files, {len(stream)} tokens to train on")
    model = fit(stream, size, scratch, progress)
    model.save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")


def split_documents(
    documents: Sequence[Document], counts: dict[str, int]
) -> dict[str, list[dict[str, str]]]:
    """Rows `text`, `path` by split; near-duplicate files lie on one side.

    Files outside `train` are cut at the end of a line below CHARACTERS_MAX.
    """
    kept = [d for d in documents if len(d.text) >= CHARACTERS_MIN]
    groups = near_duplicates([d.text for d in kept], words=5)
    sides = deal([d.path for d in kept], groups, counts)
    rows: dict[str, list[dict[str, str]]] = {name: [] for name in ("train", *counts)}
    for document, side in zip(kept, sides, strict=True):
        text = document.text
        if side != "train" and len(text) > CHARACTERS_MAX:
            text = text[: text.rfind("\n", 0, CHARACTERS_MAX) + 1] or text[:CHARACTERS_MAX]
        rows[side].append({"text": text, "path": document.path})
    return rows


def train_tokenizer(texts: Sequence[str], size: Size) -> Any:
    """Byte-level BPE with Qwen's pre-tokenizer, trained on `texts`."""
    from tokenizers import AddedToken
    from transformers import Qwen2Tokenizer

    special = AddedToken(END, special=True, normalized=False)
    untrained = Qwen2Tokenizer(
        vocab={END: 0},
        merges=[],
        unk_token=None,
        bos_token=special,
        eos_token=special,
        pad_token=special,
        model_max_length=size.context,
    )
    return untrained.train_new_from_iterator(texts, size.vocabulary, show_progress=False)


def encode(tokenizer: Any, texts: Sequence[str]) -> NDArray[np.int64]:
    """All texts as one stream of tokens, (tokens,), each text begun by END."""
    end = tokenizer.convert_tokens_to_ids(END)
    core = tokenizer.backend_tokenizer
    encoded = core.encode_batch(list(texts), add_special_tokens=False)
    return np.concatenate([np.asarray([end, *e.ids], np.int64) for e in encoded])


def fit(stream: NDArray[np.int64], size: Size, scratch: Path, progress: Progress) -> Any:
    """A model of `size`, trained on windows drawn from the stream."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from sample_models.muon import Muon

    torch.manual_seed(0)
    end = int(stream[0])
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=size.vocabulary,
            hidden_size=size.hidden,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.kv_heads,
            head_dim=size.head_dim,
            intermediate_size=size.intermediate,
            max_position_embeddings=size.context,
            tie_word_embeddings=True,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=end,
        )
    )

    def loss_of(step: int) -> torch.Tensor:
        rng = np.random.default_rng((0, step))
        starts = rng.integers(0, len(stream) - size.context, size.batch)
        windows = stream[starts[:, None] + np.arange(size.context + 1)[None, :-1]]
        # Half of the windows open with END, as prompts and evaluation windows do.
        windows[rng.random(size.batch) < 0.5, 0] = end
        ids = torch.from_numpy(windows)  # (batch, context)
        logits = model(input_ids=ids, use_cache=False).logits
        return torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten()
        )

    hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim < 2 or "embed" in name]
    optimizers = [
        Muon(hidden, lr=size.muon_rate),
        torch.optim.AdamW(
            others, lr=size.adam_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        ),
    ]
    train(
        model,
        loss_of,
        optimizers,
        name="code_lm: training",
        steps=size.steps,
        scratch=scratch,
        progress=progress,
    )
    return model
