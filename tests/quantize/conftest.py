"""Real graphs of each kind, exported once, and examples to run them on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from exporter.graph.model import OnnxModel
from exporter.models.examples import Calibration, Examples, Feeds
from tests import tiny


def examples(feeds: list[Feeds], pad: dict[str, int]) -> Examples[Calibration]:
    ids = tuple(str(i) for i in range(len(feeds)))
    return Examples(Calibration, ids, tuple(feeds), tuple(range(len(feeds))), None, pad)


def token_examples(count: int = 12) -> Examples[Calibration]:
    rng = np.random.default_rng(0)
    made: list[Feeds] = []
    for _ in range(count):
        ids = rng.integers(5, 37, rng.integers(6, 24)).astype(np.int64)
        made.append({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    return examples(made, {"input_ids": 0, "attention_mask": 0})


def image_examples(count: int = 12) -> Examples[Calibration]:
    rng = np.random.default_rng(0)
    return examples(
        [{"pixel_values": rng.random((3, 32, 32)).astype(np.float32)} for _ in range(count)], {}
    )


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    """A BERT classifier as transformers' exporter writes it."""
    return _exported("bert", "text-classification", tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    """A Qwen3 with tied embeddings as onnxruntime-genai's builder writes it."""
    return _exported("qwen3", "text-generation", tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="session")
def convnet(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    """A small ResNet with residual sums and a pooling layer."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    from exporter.graph.module import export_plain

    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 2],
        layer_type="basic",
        num_labels=4,
    )
    module = ResNetForImageClassification(config).eval()
    out = tmp_path_factory.mktemp("convnet") / "model"
    return export_plain(module, {"pixel_values": np.zeros((2, 3, 32, 32), np.float32)}, out)


def _exported(family: str, task: str, directory: Path) -> OnnxModel:
    from transformers import AutoTokenizer

    from exporter.graph.export import export_model
    from exporter.models.load import LoadedModule, load_checkpoint
    from exporter.models.tasks import get_task

    checkpoint = tiny.checkpoint(family, directory / "checkpoint")
    loaded = LoadedModule(
        load_checkpoint(checkpoint, task), AutoTokenizer.from_pretrained(checkpoint), None
    )
    return export_model(
        loaded,
        task=get_task(task),
        config=json.loads((checkpoint / "config.json").read_text()),
        checkpoint=checkpoint,
        out=directory / "model",
    )
