"""Continue a text with this model, without PyTorch: python run.py "def main(" [tokens]

Needs: pip install onnxruntime-genai numpy tokenizers
"""

import json
import sys
from pathlib import Path

try:
    import numpy as np
    import onnxruntime_genai
    from tokenizers import Tokenizer
except ImportError as error:
    sys.exit(f"{error}; pip install onnxruntime-genai numpy tokenizers")

if len(sys.argv) not in (2, 3) or not all(count.isdigit() for count in sys.argv[2:]):
    sys.exit('usage: python run.py "the beginning of a text" [how many tokens to add]')
MODEL = Path(__file__).resolve().parent / "model"
run = json.loads((MODEL / "run.json").read_text(encoding="utf-8"))
tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
tokenizer.no_padding()
tokenizer.no_truncation()
prompt = tokenizer.encode(sys.argv[1]).ids
if not 0 < len(prompt) < run["context"]:
    sys.exit(f"the text must have 1 to {run['context'] - 1} tokens, it has {len(prompt)}")
longest = min(run["context"], len(prompt) + int(sys.argv[2] if len(sys.argv) > 2 else 64))

model = onnxruntime_genai.Model(str(MODEL))
params = onnxruntime_genai.GeneratorParams(model)
params.set_search_options(max_length=longest, do_sample=False)
generator = onnxruntime_genai.Generator(model, params)
generator.append_tokens(np.array([prompt], np.int32))
while not generator.is_done():
    generator.generate_next_token()
print(tokenizer.decode([int(token) for token in generator.get_sequence(0)]))
