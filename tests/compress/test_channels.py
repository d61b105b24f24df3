"""Channels of convolutional networks go with everything that is coupled to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from exporter.compress.channels import (
    coupled_channels,
    mask_channels,
    remove_channels,
    widths_in,
)
from exporter.compress.narrow import score_channels
from exporter.compress.prune import prune
from exporter.compress.structure import build, parameter_count
from exporter.compress.widths import CHANNEL_FAMILIES, narrower_config
from exporter.models.examples import Examples, Train
from exporter.models.load import load_checkpoint
from exporter.models.tasks import get_task
from exporter.recipe import Pruning
from tests.compress.conftest import Tiny

Checkpoints = Callable[[str], Tiny]
FEEDS = {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))}


def _resnet(kind: str, depths: tuple[int, ...] = (1, 2), widths: tuple[int, ...] = (32, 48)) -> Any:
    return transformers.ResNetConfig(
        embedding_size=16,
        hidden_sizes=list(widths),
        depths=list(depths),
        layer_type=kind,
        num_labels=3,
    )


def _mobilenet(version: int, multiplier: float) -> Any:
    kind = transformers.MobileNetV1Config if version == 1 else transformers.MobileNetV2Config
    return kind(image_size=32, depth_multiplier=multiplier, min_depth=8, num_labels=3)


def _settled(config: Any, seed: int = 0, images: torch.Tensor | None = None) -> Any:
    """A classifier with random weights whose norms know what reaches them."""
    torch.manual_seed(seed)
    module = transformers.AutoModelForImageClassification.from_config(config)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.3)
    with torch.no_grad():
        module.train()(torch.randn(8, 3, 32, 32) if images is None else images)
    return module.eval()


def _same(module: Any, ratio: float, directory: Path, seed: int = 0) -> Any:
    config = narrower_config(module, ratio)
    groups = coupled_channels(module, FEEDS)
    smaller = build(module, config)
    generator = np.random.default_rng(seed)
    kept = [
        tuple(sorted(generator.permutation(group.count)[:width].tolist()))
        for group, width in zip(groups, widths_in(smaller, groups, FEEDS), strict=True)
    ]
    with torch.no_grad():
        expected = mask_channels(module, groups, kept)(**FEEDS).logits
        found = remove_channels(module, smaller, groups, kept)(**FEEDS).logits
        assert (found - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))
        smaller.save_pretrained(directory)  # type: ignore[operator]
        auto = transformers.AutoModelForImageClassification
        loaded = auto.from_pretrained(directory).eval()
        assert torch.equal(loaded(**FEEDS).logits, found)
    assert parameter_count(loaded) < parameter_count(module)
    return loaded


@pytest.mark.parametrize("ratio", [0.25, 0.5])
@pytest.mark.parametrize(
    "config",
    [_resnet("basic"), _resnet("bottleneck"), _mobilenet(1, 0.5), _mobilenet(2, 0.5)],
    ids=["resnet-basic", "resnet-bottleneck", "mobilenet_v1", "mobilenet_v2"],
)
def test_removed_is_masked(config: Any, ratio: float, tmp_path: Path) -> None:
    _same(_settled(config), ratio, tmp_path)


def test_every_family_is_tested() -> None:
    assert set(CHANNEL_FAMILIES) == {"resnet", "mobilenet_v1", "mobilenet_v2"}


def test_removed_is_masked_in_any_resnet(tmp_path_factory: pytest.TempPathFactory) -> None:
    @given(
        kind=st.sampled_from(("basic", "bottleneck")),
        stages=st.lists(st.tuples(st.integers(1, 3), st.integers(2, 8)), min_size=1, max_size=3),
        ratio=st.floats(0.4, 0.7),
        seed=st.integers(0, 99),
    )
    @settings(max_examples=8, derandomize=True, database=None, deadline=None)
    def check(kind: str, stages: list[tuple[int, int]], ratio: float, seed: int) -> None:
        config = _resnet(kind, tuple(d for d, _ in stages), tuple(8 * w for _, w in stages))
        _same(_settled(config, seed), ratio, tmp_path_factory.mktemp("resnet"), seed)

    check()


def test_residual_sums_and_depthwise_convolutions_couple() -> None:
    module = _settled(_mobilenet(2, 0.5))
    groups = coupled_channels(module, FEEDS)
    depthwise = [n for n, p in module.named_modules() if isinstance(p, nn.Conv2d) and p.groups > 1]
    for name in depthwise:
        (group,) = [g for g in groups if (f"{name}.weight", 0) in g.axes]
        before = name.replace("conv_3x3", "expand_1x1")
        if before in dict(module.named_modules()) and before != name:
            assert (f"{before}.weight", 0) in group.axes
    assert any(sum(axis == 1 for _, axis in g.axes) > 1 for g in groups)


@pytest.mark.parametrize("family", ["mobilenetv2"])
def test_pruned_network_is_an_ordinary_checkpoint(
    family: str, tiny_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    tiny = tiny_checkpoint(family)
    module = tiny.module()
    result = prune(module, tiny.task, tiny.examples(Train, 24), Pruning(channels=0.5))
    result.module.save_pretrained(tmp_path)  # type: ignore[operator]
    loaded = load_checkpoint(tmp_path, tiny.task.name)
    assert loaded.config.depth_multiplier < module.config.depth_multiplier
    assert parameter_count(loaded) == result.removed["parameters"]["after"]
    assert result.removed["channels"]["after"] < result.removed["channels"]["before"]
    work = result.removed["multiply_accumulates"]
    assert work["after"] < work["before"]
    assert not result.skipped


def _images(count: int) -> Examples[Train]:
    generator = np.random.default_rng(0)
    feeds = tuple(
        {"pixel_values": generator.standard_normal((3, 32, 32)).astype(np.float32) + i % 3}
        for i in range(count)
    )
    owner, ids = tuple(range(count)), tuple(map(str, range(count)))
    return Examples(Train, ids, feeds, owner, np.arange(count) % 3, {}, {})


def test_settled_norms_bring_answers_back() -> None:
    examples = _images(48)
    seen = torch.from_numpy(np.stack([feed["pixel_values"] for feed in examples.feeds]))
    module = _settled(_resnet("basic", (2, 2), (32, 32)), images=seen)
    task = get_task("image-classification")
    removed = prune(module, task, examples, Pruning(channels=0.5)).removed
    assert removed["divergence"] < removed["compensation"]["divergence_without"]


def test_a_dead_channel_goes_first() -> None:
    module = _settled(_resnet("basic"))
    groups = coupled_channels(module, FEEDS)
    with torch.no_grad():
        state = module.state_dict()
        for group in groups:
            for name, axis in group.writers:
                if group.count > 3:
                    state[name].select(axis, 2).zero_()
    for group, scores in zip(groups, score_channels(module, groups, _images(8)), strict=True):
        if group.count > 3:
            assert scores[2] == 0
            assert (scores > 0).sum() > group.count // 2


def test_widths_that_become_equal_are_refused() -> None:
    """A MobileNet adds its input where both are equally wide: that is another network."""
    module = _settled(_mobilenet(2, 0.35))
    groups = coupled_channels(module, FEEDS)
    with pytest.raises(ValueError, match="couples its channels differently"):
        widths_in(build(module, narrower_config(module, 0.5)), groups, FEEDS)
    result = prune(module, get_task("image-classification"), _images(8), Pruning(channels=0.5))
    milder: Any = result.module
    assert 0.35 / 2 < milder.config.depth_multiplier < 0.35
    assert widths_in(milder, groups, FEEDS)


def test_transformers_have_no_channels(tiny_checkpoint: Checkpoints) -> None:
    tiny = tiny_checkpoint("vit")
    module = tiny.module()
    result = prune(module, tiny.task, tiny.examples(Train, 4), Pruning(channels=0.5))
    assert result.module is module
    assert "those of a vit model cannot go" in result.skipped[0]


def test_grouped_convolutions_are_refused() -> None:
    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 8, 1)
            self.second = nn.Conv2d(8, 8, 1, groups=2)

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            left: torch.Tensor = self.second(self.first(pixel_values))
            return left

    with pytest.raises(ValueError, match="second is a convolution in 2 groups"):
        coupled_channels(Grouped(), FEEDS)
