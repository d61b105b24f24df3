"""Checkpoints of each family, exported once for all tests of this room."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from exporter.graph.export import export_model
from exporter.graph.model import OnnxModel
from exporter.models.load import LoadedModule, load_checkpoint, preprocessor_from
from exporter.models.tasks import get_task
from tests.tiny import checkpoint

TASKS = {
    "bert": "text-classification",
    "modernbert": "text-classification",
    "bert-encoder": "feature-extraction",
    "gpt2": "text-generation",
    "llama": "text-generation",
    "qwen3": "text-generation",
    "gemma3": "text-generation",
    "vit": "image-classification",
    "mobilenetv2": "image-classification",
}


@dataclass(frozen=True)
class Exported:
    """A checkpoint, its module in memory, and its graph."""

    checkpoint: Path
    loaded: LoadedModule
    task: Any
    config: dict[str, Any]
    model: OnnxModel

    def again(self, out: Path, **changes: Any) -> OnnxModel:
        """Export once more, to `out`."""
        options = {"task": self.task, "config": self.config, "checkpoint": self.checkpoint}
        return export_model(self.loaded, out=out, **{**options, **changes})


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    made: dict[str, Exported] = {}

    def get(family: str) -> Exported:
        if family not in made:
            root = tmp_path_factory.mktemp(family)
            directory = checkpoint(family, root / "checkpoint")
            task = get_task(TASKS[family])
            module = load_checkpoint(directory, task.name)
            loaded = LoadedModule(module, preprocessor_from(directory, task.name), None)
            config = json.loads((directory / "config.json").read_text())
            model = export_model(
                loaded, task=task, config=config, checkpoint=directory, out=root / "model"
            )
            made[family] = Exported(directory, loaded, task, config, model)
        return made[family]

    return get
