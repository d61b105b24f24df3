"""What tests of the whole chain share: tiny data, a quick profile, a quick recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from exporter.recipe import Recipe
from exporter.target import Target, load_target
from tests import tiny

FINE_TUNE = {"steps": 4, "batch_size": 8, "evaluate_every": 2, "learning_rate": 1e-3}
RECIPE: dict[str, Any] = {
    "calibration_examples": 16,
    "candidates": [
        {
            "name": "dynamic-int8",
            "tasks": ["text-classification", "feature-extraction"],
            "quantization": "dynamic-int8",
        },
        {"name": "int8", "tasks": ["text-generation"], "quantization": "int8-weights"},
        {
            "name": "static-int8",
            "tasks": ["text-classification", "image-classification"],
            "quantization": "static-int8",
        },
        {
            "name": "pruned",
            "tasks": ["text-classification", "text-generation"],
            "quantization": "none",
            "pruning": {"ffn": 0.5, "examples": 8},
            "fine_tune": FINE_TUNE,
        },
    ],
}


def quick_target(
    name: str = "mobile",
    recipe: dict[str, Any] | None = None,
    changes: dict[str, Any] | None = None,
    **budgets: Any,
) -> Target:
    """A real profile with short timing, the quick recipe, and its budgets replaced if given.

    `changes` replaces other fields, such as `{"format": "ort"}`.
    """
    profile = load_target(name)
    changed = profile.model_dump() | (changes or {})
    changed["evidence"] |= {"latency_rounds": 5, "latency_seconds": 10, "resamples": 200}
    changed["workload"] |= {"sequence_length": 16, "prompt_length": 16, "decode_tokens": 4}
    changed["recipe"] = Recipe.model_validate(recipe or RECIPE).model_dump()
    if budgets:
        changed["budgets"] = budgets
    return Target.model_validate(changed)


def text_data(path: Path, count: int = 400, *, labels: bool = True) -> Path:
    """A JSONL file of sentences, with labels that the words decide."""
    rows = [
        {"text": text, "label": tiny.label_of(text)} if labels else {"text": text}
        for text in tiny.sentences(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def image_data(path: Path, count: int = 240) -> Path:
    """An image folder: three classes by the colour of noise."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(count):
        channel = i % 3
        pixels = rng.integers(0, 120, (16, 16, 3), np.uint8)
        pixels[..., channel] += 100
        folder = path / tiny.LABELS[channel]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{i:04}.png")
    return path


def data_for(family: str, directory: Path) -> Path:
    """Data of the kind that a family's task needs."""
    if family in tiny.IMAGE_CLASSIFIERS:
        return image_data(directory / "images")
    return text_data(directory / "rows.jsonl", labels=family in tiny.TEXT_CLASSIFIERS)
