"""Run this model, without PyTorch, on arrays: python run.py inputs.npz [outputs.npz]

Needs: pip install onnxruntime numpy
"""

import json
import sys
from pathlib import Path

try:
    import numpy as np
    import onnxruntime
except ImportError as error:
    sys.exit(f"{error}; pip install onnxruntime numpy")

MODEL = Path(__file__).resolve().parent / "model"
run = json.loads((MODEL / "run.json").read_text(encoding="utf-8"))
file = MODEL / "session.json"  # the settings this model was measured with
settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
session = onnxruntime.InferenceSession(
    str(MODEL / "model.onnx"),
    providers=["CPUExecutionProvider"],
    disabled_optimizers=settings.get("disabled_optimizers", []),
)
if len(sys.argv) not in (2, 3):
    wanted = ", ".join(f"{i.name} {i.type}{i.shape}" for i in session.get_inputs())
    sys.exit(f"usage: python run.py inputs.npz [outputs.npz]   inputs.npz holds: {wanted}")
try:
    with np.load(sys.argv[1]) as arrays:
        feeds = {i.name: arrays[i.name] for i in session.get_inputs()}
except (OSError, ValueError, KeyError) as error:
    sys.exit(f"{sys.argv[1]} does not hold the arrays this model reads: {error}")
names = [o.name for o in session.get_outputs()]
answers = dict(zip(names, session.run(names, feeds), strict=True))
for name, array in answers.items():
    print(name, list(array.shape), np.array2string(array, precision=4, threshold=12, edgeitems=3))
if run.get("labels") and "logits" in answers:
    print("label:", *(run["labels"][i] for i in answers["logits"].argmax(axis=-1)))
if len(sys.argv) == 3:
    np.savez(sys.argv[2], **answers)
