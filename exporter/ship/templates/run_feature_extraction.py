"""Embed texts with this model, without PyTorch: python run.py "a text" "a text to compare it to"

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

if len(sys.argv) < 2:
    sys.exit('usage: python run.py "a text" ["a text to compare it to" ...]')
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

vectors = []
for text in sys.argv[1:]:
    made = tokenizer.encode(text)
    feeds = {
        "input_ids": made.ids,
        "attention_mask": made.attention_mask,
        "token_type_ids": made.type_ids,
    }
    arrays = {name: np.array([ids], np.int64) for name, ids in feeds.items() if name in inputs}
    mean = session.run(["last_hidden_state"], arrays)[0][0].mean(axis=0)  # (dimensions,)
    vectors.append(mean / np.linalg.norm(mean))
    print(
        f"{text} -> {len(mean)} dimensions:", np.array2string(vectors[-1][:6], precision=4), "..."
    )
for text, vector in zip(sys.argv[2:], vectors[1:], strict=True):
    print(f"cosine {vectors[0] @ vector:.4f}: {sys.argv[1]} | {text}")
