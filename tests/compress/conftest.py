"""Tiny checkpoints of each family, and examples for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.models.examples import Examples, Role, Split
from exporter.models.load import load_checkpoint, preprocessor_from
from exporter.models.tasks import Task, get_task
from tests import tiny

TASK_OF = {
    **dict.fromkeys(tiny.TEXT_CLASSIFIERS, "text-classification"),
    **dict.fromkeys(tiny.DECODERS, "text-generation"),
    **dict.fromkeys(tiny.IMAGE_CLASSIFIERS, "image-classification"),
    "bert-encoder": "feature-extraction",
}
TRANSFORMERS = ("bert", "modernbert", "gpt2", "llama", "qwen3", "gemma3", "vit")


@dataclass(frozen=True)
class Tiny:
    """A checkpoint on disk and its task."""

    family: str
    directory: Path
    task: Task

    def module(self) -> Any:
        """A freshly loaded module."""
        return load_checkpoint(self.directory, self.task.name)

    def examples(self, role: type[Role], count: int = 12, seed: int = 0) -> Examples[Any]:
        """Labelled texts or images, made into feeds."""
        preprocessor = preprocessor_from(self.directory, self.task.name)
        rows: list[dict[str, Any]]
        if self.task.name == "image-classification":
            generator = np.random.default_rng(seed)
            rows = [
                {"image": generator.integers(0, 256, (16, 16, 3), np.uint8), "label": i % 3}
                for i in range(count)
            ]
        else:
            texts = tiny.sentences(count, seed)
            rows = [{"text": t, "label": tiny.LABELS.index(tiny.label_of(t))} for t in texts]
        split = Split(role, rows, tuple(f"{role.name}-{i}" for i in range(count)))
        config = self.module().config.to_dict()
        return self.task.prepare(split, preprocessor, config, max_length=32)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tiny]:
    """Checkpoints by family, each written once."""
    made: dict[str, Tiny] = {}

    def make(family: str) -> Tiny:
        if family not in made:
            directory = tiny.checkpoint(family, tmp_path_factory.mktemp("tiny") / family)
            made[family] = Tiny(family, directory, get_task(TASK_OF[family]))
        return made[family]

    return make
