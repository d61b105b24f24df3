"""Tiny exported models, bundled as they would ship, and a Python that has no training framework."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from exporter.graph.export import export_model
from exporter.graph.model import OnnxModel
from exporter.models.load import LoadedModule, load_checkpoint, preprocessor_from
from exporter.models.tasks import get_task
from exporter.ship.bundle import assemble_model
from tests.tiny import checkpoint

TASKS = {
    "bert": "text-classification",
    "bert-encoder": "feature-extraction",
    "qwen3": "text-generation",
    "gpt2": "text-generation",
    "mobilenetv2": "image-classification",
}

# What a phone app or a small server does not have.
ABSENT = ("torch", "transformers", "datasets", "optimum", "onnx", "exporter", "safetensors")
BARE = f"""
import runpy, sys
for name in {ABSENT!r}:
    sys.modules[name] = None
script = sys.argv[1]
sys.argv = sys.argv[1:]
found = runpy.run_path(script, run_name="__main__")
"""


@dataclass(frozen=True)
class Shipped:
    """A bundled model and what it came from."""

    directory: Path
    checkpoint: Path
    module: Any
    preprocessor: Any
    model: OnnxModel
    notes: tuple[str, ...]


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Shipped]:
    """A family's tiny model, exported and bundled once."""
    made: dict[str, Shipped] = {}

    def get(family: str) -> Shipped:
        if family not in made:
            root = tmp_path_factory.mktemp(family)
            source = checkpoint(family, root / "checkpoint")
            task = get_task(TASKS[family])
            module = load_checkpoint(source, task.name)
            preprocessor = preprocessor_from(source, task.name)
            model = export_model(
                LoadedModule(module, preprocessor, None),
                task=task,
                config=json.loads((source / "config.json").read_text(encoding="utf-8")),
                checkpoint=source,
                out=root / "model",
            )
            out = root / "shipped"
            out.mkdir()
            notes = assemble_model(
                out, model=model, task=task.name, preprocessor_files=source, max_length=32
            )
            made[family] = Shipped(out, source, module, preprocessor, model, notes)
        return made[family]

    return get


@pytest.fixture(scope="session")
def run_bare() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a shipped run.py where torch and its friends cannot be imported."""

    def run(
        directory: Path, *words: str, after: str = "", before: str = ""
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-I", "-c", before + BARE + after, str(directory / "run.py"), *words],
            capture_output=True,
            text=True,
            cwd="/",
            timeout=120,
        )

    return run
