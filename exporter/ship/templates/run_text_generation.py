"""Continue a text with this model, without PyTorch: python run.py "once upon a" [tokens]

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

if len(sys.argv) not in (2, 3) or not all(count.isdigit() for count in sys.argv[2:]):
    sys.exit('usage: python run.py "the beginning of a text" [how many tokens to add]')
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
tokenizer.no_truncation()
tokens = tokenizer.encode(sys.argv[1]).ids
if not 0 < len(tokens) < run["context"]:
    sys.exit(f"the text must have 1 to {run['context'] - 1} tokens, it has {len(tokens)}")
longest = min(run["context"], len(tokens) + int(sys.argv[2] if len(sys.argv) > 2 else 64))

inputs = {i.name: i.shape for i in session.get_inputs()}
outputs = [o.name for o in session.get_outputs()]
cache = {  # keys and values of the tokens read so far, (1, heads, tokens, head width)
    name: np.zeros((1, shape[1], 0, shape[3]), np.float32)
    for name, shape in inputs.items()
    if name.startswith("past_key_values.")
}
read = 0  # tokens that the cache holds
while len(tokens) < longest and (read == 0 or tokens[-1] not in run["stop"]):
    feeds = {
        "input_ids": np.array([tokens[read:]], np.int64),
        "attention_mask": np.ones((1, len(tokens)), np.int64),
        "position_ids": np.arange(read, len(tokens), dtype=np.int64)[None],
    }
    feeds = {name: array for name, array in feeds.items() if name in inputs}
    answer = dict(zip(outputs, session.run(outputs, feeds | cache), strict=True))
    cache = {name: answer[name.replace("past_key_values", "present")] for name in cache}
    read = len(tokens) if cache else 0
    tokens.append(int(answer["logits"][0, -1].argmax()))
print(tokenizer.decode(tokens))
