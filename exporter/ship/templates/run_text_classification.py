"""Classify texts with this model, without PyTorch: python run.py "some text" "another text"

Needs: pip install onnxruntime numpy tokenizers
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

if len(sys.argv) < 2:
    sys.exit('usage: python run.py "some text" ["another text" ...]   (pairs: one after the other)')
MODEL = Path(__file__).resolve().parent / "model"
run = json.loads((MODEL / "run.json").read_text(encoding="utf-8"))
file = MODEL / "session.json"  # the settings this model was measured with
settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
session = onnxruntime.InferenceSession(
    str(MODEL / "model.onnx"),
    providers=["CPUExecutionProvider"],
    disabled_optimizers=settings.get("disabled_optimizers", []),
)
tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
tokenizer.no_padding()
tokenizer.enable_truncation(run["max_length"])
inputs = {i.name for i in session.get_inputs()}

texts = sys.argv[1:]
for row in zip(texts[::2], texts[1::2], strict=True) if run["paired"] else [(t,) for t in texts]:
    made = tokenizer.encode(*row)
    feeds = {
        "input_ids": made.ids,
        "attention_mask": made.attention_mask,
        "token_type_ids": made.type_ids,
    }
    arrays = {name: np.array([ids], np.int64) for name, ids in feeds.items() if name in inputs}
    logits = session.run(["logits"], arrays)[0][0]  # (labels,)
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    best = np.argsort(-shares)[:3]
    print(" | ".join(row), "->", ", ".join(f"{run['labels'][i]} {shares[i]:.1%}" for i in best))
