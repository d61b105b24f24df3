"""run.py: the few lines that ship with a model and run it without a training framework."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from exporter.graph.model import OnnxModel
from exporter.models.text import model_length

RUN_SETTINGS = "run.json"
TEMPLATES = Path(__file__).resolve().parent / "templates"

# Processors whose steps are resize, crop, rescale, normalize and nothing of their own.
# ConvNext's resize is wider than what it then crops to; MobileViT swaps red and blue.
_PLAIN_PROCESSORS = (
    "BitImageProcessor",
    "BlipImageProcessor",
    "CLIPImageProcessor",
    "ChineseCLIPImageProcessor",
    "ConvNextImageProcessor",
    "DPTImageProcessor",
    "DeiTImageProcessor",
    "MobileNetV1ImageProcessor",
    "MobileNetV2ImageProcessor",
    "MobileViTImageProcessor",
    "PvtImageProcessor",
    "SiglipImageProcessor",
    "ViTImageProcessor",
)
_KNOWN_STEPS = {
    "do_resize",
    "do_center_crop",
    "do_rescale",
    "do_normalize",
    "do_convert_rgb",
    "do_flip_channel_order",
    "do_reduce_labels",  # concerns segmentation maps only
}


def write_runner(
    directory: Path,
    *,
    task: str,
    config: Mapping[str, Any],
    labels: Sequence[str],
    max_length: int | None,
    paired: bool,
) -> tuple[str, ...]:
    """Write `run.py` into the artifact `directory`, and `model/run.json` that it reads.

    Args:
        directory: holds `model/` with everything else already in it.
        max_length: tokens at which an encoder's input is cut, as it was when it was judged.
        paired: texts come in pairs.

    Returns:
        What the reader should know about run.py, such as that it takes arrays instead of images.
    """
    model = OnnxModel(directory / "model")
    template, settings, notes = "run_feeds", dict[str, Any](), list[str]()
    if task == "image-classification":
        settings, reason = image_steps(model.directory, config)
        if settings:
            template = "run_image_classification"
        else:
            notes.append(f"run.py takes arrays instead of images: {reason}")
    elif not (model.directory / "tokenizer.json").is_file():
        notes.append("run.py takes arrays instead of text: the model came without a tokenizer")
    elif task == "text-generation":
        template = "run_text_generation_genai" if model.genai else "run_text_generation"
        settings = {"context": _context(config), "stop": _stop_tokens(model.directory, config)}
    else:
        template = f"run_{task.replace('-', '_')}"
        settings = {"max_length": _cut(model.directory, config, max_length), "paired": paired}
    if task.endswith("classification"):
        settings["labels"] = list(labels) or [str(i) for i in range(_classes(model))]
    settings = {"task": task, **settings}
    text = json.dumps(settings, indent=2, ensure_ascii=False, allow_nan=False)
    (model.directory / RUN_SETTINGS).write_text(text + "\n", encoding="utf-8")
    (directory / "run.py").write_bytes((TEMPLATES / f"{template}.py").read_bytes())
    return tuple(notes)


def image_steps(directory: Path, config: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """What preprocessor_config.json asks for, as run.py's steps; else {} and the reason.

    Sizes are (width, height), as Pillow has them.
    """
    path = directory / "preprocessor_config.json"
    if not path.is_file():
        return {}, "the model came without an image processor"
    processor = json.loads(path.read_text(encoding="utf-8"))
    kind = str(processor.get("image_processor_type", "")).removesuffix("Fast")
    own = [k for k, on in processor.items() if k.startswith("do_") and on and k not in _KNOWN_STEPS]
    if kind not in _PLAIN_PROCESSORS or own:
        return {}, f"it does not know the steps of {', '.join(own) or kind or 'this processor'}"
    steps: dict[str, Any] = {
        "mode": "L" if config.get("num_channels") == 1 else "RGB",
        "shortest_edge": None,
        "resize": None,
        "resample": int(processor.get("resample", 2)),
        "crop": _box(processor["crop_size"]) if processor.get("do_center_crop") else None,
        "scale": processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale") else 1,
        "mean": processor["image_mean"] if processor.get("do_normalize") else [0],
        "std": processor["image_std"] if processor.get("do_normalize") else [1],
        "order": -1 if processor.get("do_flip_channel_order") else 1,
    }
    if processor.get("do_resize"):
        size = processor["size"]
        edge = size.get("shortest_edge") if isinstance(size, dict) else None
        if edge is None:
            steps["resize"] = _box(size)
        elif kind != "ConvNextImageProcessor":
            steps["shortest_edge"] = edge
        elif edge >= 384:
            steps["resize"] = [edge, edge]
        else:
            steps["shortest_edge"] = int(edge / processor.get("crop_pct", 224 / 256))
            steps["crop"] = [edge, edge]
    return steps, ""


def _box(size: Any) -> list[int]:
    """(width, height) from transformers' {"height", "width"} or a single number."""
    return [int(size["width"]), int(size["height"])] if isinstance(size, dict) else [int(size)] * 2


def _cut(directory: Path, config: Mapping[str, Any], max_length: int | None) -> int:
    """Tokens of an encoder's input: what it was judged with, within what it can hold."""
    path = directory / "tokenizer_config.json"
    own = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    wanted = max_length or _context(config)
    tokenizer = SimpleNamespace(model_max_length=own.get("model_max_length") or wanted)
    return model_length(tokenizer, dict(config), wanted)


def _classes(model: OnnxModel) -> int:
    """Classes that the graph tells apart, 0 when it does not say."""
    import onnx

    outputs = onnx.load(str(model.path), load_external_data=False).graph.output
    shapes = {o.name: o.type.tensor_type.shape.dim for o in outputs}
    dims = shapes.get("logits", ())
    return int(dims[-1].dim_value) if dims else 0


def _context(config: Mapping[str, Any]) -> int:
    """Tokens that fit into the model at most."""
    inner = config.get("text_config") or {}
    for key in ("max_position_embeddings", "n_positions"):
        for holder in (config, inner):
            if isinstance(holder.get(key), int):
                return int(holder[key])
    return 512


def _stop_tokens(directory: Path, config: Mapping[str, Any]) -> list[int]:
    """Ids that end a text, from the generation configuration or the model's own."""
    path = directory / "generation_config.json"
    generation = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    stop = generation.get("eos_token_id", config.get("eos_token_id"))
    return [] if stop is None else [int(i) for i in (stop if isinstance(stop, list) else [stop])]
