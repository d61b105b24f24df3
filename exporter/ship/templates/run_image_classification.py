"""Classify pictures with this model, without PyTorch: python run.py picture.png another.jpg

Needs: pip install onnxruntime numpy pillow
"""

import json
import sys
from pathlib import Path

try:
    import numpy as np
    import onnxruntime
    from numpy.typing import NDArray
    from PIL import Image
except ImportError as error:
    sys.exit(f"{error}; pip install onnxruntime numpy pillow")

if len(sys.argv) < 2:
    sys.exit("usage: python run.py picture.png [another.jpg ...]")
MODEL = Path(__file__).resolve().parent / "model"
run = json.loads((MODEL / "run.json").read_text(encoding="utf-8"))
file = MODEL / "session.json"  # the settings this model was measured with
settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
session = onnxruntime.InferenceSession(
    str(MODEL / "model.onnx"),
    providers=["CPUExecutionProvider"],
    disabled_optimizers=settings.get("disabled_optimizers", []),
)


def pixels(path: str) -> NDArray[np.float32]:
    """A picture as the model was trained to see it, (1, channels, height, width) float32."""
    image = Image.open(path).convert(run["mode"])
    if run["shortest_edge"]:
        edge, short = run["shortest_edge"], min(image.size)
        image = image.resize(tuple(int(edge * s / short) for s in image.size), run["resample"])
    if run["resize"]:
        image = image.resize(run["resize"], run["resample"])
    if run["crop"]:
        left, top = ((have - want) // 2 for have, want in zip(image.size, run["crop"], strict=True))
        image = image.crop((left, top, left + run["crop"][0], top + run["crop"][1]))
    array = np.atleast_3d(np.asarray(image, np.float32)) * run["scale"]  # (height, width, channels)
    array = (array - np.float32(run["mean"])) / np.float32(run["std"])
    return np.asarray(array[..., :: run["order"]].transpose(2, 0, 1)[None], np.float32)


for path in sys.argv[1:]:
    try:
        feeds = {session.get_inputs()[0].name: pixels(path)}
    except OSError as error:
        sys.exit(f"{path} is no picture that can be read: {error}")
    logits = session.run(["logits"], feeds)[0][0]  # (labels,)
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    best = np.argsort(-shares)[:3]
    print(path, "->", ", ".join(f"{run['labels'][i]} {shares[i]:.1%}" for i in best))
