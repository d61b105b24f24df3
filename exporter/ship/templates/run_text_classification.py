"""Classify texts with this model, without PyTorch: python run.py "some text" "another text"

Needs: pip install onnxruntime numpy tokenizers
"""

import json
import sys
from pathlib import Path

try:
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer
except ImportError as error:
    sys.exit(f"{error}; pip install onnxruntime numpy tokenizers")

MODEL = Path(__file__).resolve().parent / "model"
run = json.loads((MODEL / "run.json").read_text(encoding="utf-8"))
step = 2 if run["paired"] else 1  # texts that belong together
if len(sys.argv) < 2 or (len(sys.argv) - 1) % step:
    sys.exit(f"usage: python run.py {'TEXT ' * step}[{'TEXT ' * step}...]")
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

for start in range(1, len(sys.argv), step):
    row = sys.argv[start : start + step]
    made = tokenizer.encode(row[0], row[1] if run["paired"] else None)
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
