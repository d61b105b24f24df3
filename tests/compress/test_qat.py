"""The integer model answers as the module that was trained to round like it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from exporter.compress.qat import (
    FollowRanges,
    fake_quantized,
    observe,
    released,
)
from exporter.compress.ranges import Rounding
from exporter.errors import ModelError
from exporter.graph.export import export_model
from exporter.graph.model import OnnxModel
from exporter.graph.module import export_plain
from exporter.graph.session import open_run
from exporter.models.examples import Calibration, Examples, Train
from exporter.models.load import LoadedModule, preprocessor_from
from exporter.models.runner import torch_run
from exporter.quantize import QuantizeOptions, get_scheme
from tests.compress.conftest import Tiny

Checkpoints = Callable[[str], Tiny]
SCHEMES = ("dynamic-int8", "static-int8")


def _images(role: Any, count: int = 8) -> Examples[Any]:
    rng = np.random.default_rng(0)
    feeds = tuple({"x": rng.standard_normal((3, 12, 12)).astype(np.float32)} for _ in range(count))
    ids = tuple(map(str, range(count)))
    return Examples(role, ids, feeds, tuple(range(count)), None, {})


def _rows(role: Any, count: int = 8) -> Examples[Any]:
    rng = np.random.default_rng(1)
    feeds = tuple({"x": rng.standard_normal((5, 48)).astype(np.float32)} for _ in range(count))
    ids = tuple(map(str, range(count)))
    return Examples(role, ids, feeds, tuple(range(count)), None, {})


class _Single(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(48, 32, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x)
        return out


class _Convolutions(nn.Module):
    """A stem, a batch norm, a depthwise convolution, a pool and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(2)
        self.last = nn.Conv2d(8, 12, 1)
        self.head = nn.Linear(12, 4)
        nn.init.uniform_(self.norm.running_mean, -1, 1)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = self.pool(torch.relu(self.norm(self.deep(x))))
        x = torch.relu(self.last(x)).mean((2, 3))
        out: torch.Tensor = self.head(x)
        return out


def _trained(module: nn.Module, examples: Examples[Any], rounding: Rounding) -> nn.Module:
    """A module with twins, ranges observed and a few steps taken."""
    fake_quantized(module, rounding)
    observe(module, examples, 4)
    hook = FollowRanges(rounding)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    for step in range(1, 6):
        hook.before_step(step, 5, module)
        batch = next(examples.batches(4))
        feeds = {k: torch.from_numpy(np.array(v)) for k, v in batch.feeds.items()}
        out = module(**feeds)
        out = out if isinstance(out, torch.Tensor) else out[0]
        optimizer.zero_grad()
        (out - 1).square().mean().backward()
        optimizer.step()
        hook.after_step(module)
    return module.eval()


def _quantized(graph: OnnxModel, rounding: Rounding, out: Path, **more: Any) -> OnnxModel:
    options = QuantizeOptions(
        reduce_range=rounding.safe,
        per_channel=rounding.per_channel,
        block_size=rounding.block_size,
        **more,
    )
    return get_scheme(rounding.scheme).quantize(graph, out, options).model


def _gap(expected: Any, found: Any) -> float:
    """The largest difference in steps of 1/255 of the output's range."""
    span = max(float(expected.max()), 0.0) - min(float(expected.min()), 0.0)
    return float(np.abs(found - expected).max()) / (span / 255)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_single_layer_is_exact(
    scheme: Any, per_channel: bool, safe: bool, bias: bool, tmp_path: Path
) -> None:
    """Up to the order in which float32 sums: a hundredth of a step."""
    rounding = Rounding(scheme, per_channel=per_channel, safe=safe)
    torch.manual_seed(0)
    module = _trained(_Single(bias), _rows(Train), rounding)
    feeds = {"x": np.stack([feed["x"] for feed in _rows(Train).feeds])}
    with torch.no_grad():
        expected = module(torch.from_numpy(feeds["x"])).numpy()
    learned = tuple(released(module))
    assert len(learned) == (scheme == "static-int8")
    graph = export_plain(module, feeds, tmp_path / "float")
    made = _quantized(
        graph, rounding, tmp_path / "int8", calibration=_rows(Calibration), learned=learned
    )
    found = next(iter(open_run(made)(feeds).values()))
    assert _gap(expected, found) < 0.01
    floats = next(iter(open_run(graph)(feeds).values()))
    assert _gap(expected, floats) > 0.2, "rounding matters"


@pytest.mark.parametrize(
    ("scheme", "family", "per_channel"),
    [
        ("dynamic-int8", "bert", True),
        ("dynamic-int8", "gpt2", True),
        ("dynamic-int8", "gpt2", False),
        ("dynamic-int8", "llama", True),
        ("static-int8", "bert", True),
        ("static-int8", "bert", False),
    ],
)
def test_whole_models_agree_within_a_step(
    scheme: Any,
    family: str,
    per_channel: bool,
    tiny_checkpoint: Checkpoints,
    tmp_path: Path,
) -> None:
    tiny = tiny_checkpoint(family)
    rounding = Rounding(scheme, per_channel=per_channel, safe=True)
    module = _trained(tiny.module(), tiny.examples(Train), rounding)
    examples = tiny.examples(Calibration, 6, seed=3)
    feeds = [batch.feeds for batch in examples.batches(1)]
    expected = [_answer(torch_run(module)(feed)) for feed in feeds]
    learned = tuple(released(module))
    module.save_pretrained(tmp_path / "checkpoint")
    graph = export_model(
        LoadedModule(module, preprocessor_from(tiny.directory, tiny.task.name), None),
        task=tiny.task,
        config=json.loads((tmp_path / "checkpoint" / "config.json").read_text()),
        checkpoint=_whole(tiny, tmp_path / "checkpoint"),
        out=tmp_path / "float",
    )
    made = _quantized(graph, rounding, tmp_path / "int8", calibration=examples, learned=learned)
    run, exact = open_run(made), open_run(graph)
    gaps = [_gap(e, _answer(run(f))) for e, f in zip(expected, feeds, strict=True)]
    floats = [_gap(e, _answer(exact(f))) for e, f in zip(expected, feeds, strict=True)]
    assert max(gaps) < 1, f"{gaps} against {floats} without rounding"
    assert np.mean(gaps) < 0.3 * np.mean(floats)


def _whole(tiny: Tiny, checkpoint: Path) -> Path:
    """The checkpoint with its preprocessor, as builders want it."""
    preprocessor_from(tiny.directory, tiny.task.name).save_pretrained(checkpoint)
    return checkpoint


def _answer(outputs: Any) -> Any:
    return outputs["logits"]


def test_convolutions_agree_within_a_step(tmp_path: Path) -> None:
    rounding = Rounding("static-int8", safe=True)
    torch.manual_seed(0)
    module = _trained(_Convolutions(), _images(Train), rounding)
    feeds = {"x": np.stack([feed["x"] for feed in _images(Train).feeds])}
    with torch.no_grad():
        expected = module(torch.from_numpy(feeds["x"])).numpy()
    learned = tuple(released(module))
    assert len(learned) == 4
    graph = export_plain(module, feeds, tmp_path / "float")
    made = _quantized(
        graph, rounding, tmp_path / "int8", calibration=_images(Calibration), learned=learned
    )
    found = next(iter(open_run(made)(feeds).values()))
    assert _gap(expected, found) < 2


def test_undone_it_is_the_module_again(tiny_checkpoint: Checkpoints) -> None:
    tiny = tiny_checkpoint("bert")
    module, plain = tiny.module(), tiny.module()
    before = {name: type(part) for name, part in module.named_modules()}
    fake_quantized(module, Rounding("static-int8"))
    observe(module, tiny.examples(Train), 4)
    assert {name: type(part) for name, part in module.named_modules()} != before
    assert set(dict(module.named_parameters())) == set(dict(plain.named_parameters()))
    assert released(module)
    assert {name: type(part) for name, part in module.named_modules()} == before
    assert set(module.state_dict()) == set(plain.state_dict())
    assert all(torch.equal(v, plain.state_dict()[n]) for n, v in module.state_dict().items())


def test_ranges_follow_in_training_and_in_nothing_else(
    tiny_checkpoint: Checkpoints,
) -> None:
    tiny = tiny_checkpoint("bert")
    rounding = Rounding("static-int8")
    module = fake_quantized(tiny.module(), rounding)
    observe(module, tiny.examples(Train, 4), 4)
    feeds = next(tiny.examples(Train, 12, seed=5).batches(12)).feeds
    ids = torch.from_numpy(np.array(feeds["input_ids"]))

    def ranges() -> list[float]:
        return [float(b) for n, b in module.named_buffers() if n.endswith(("_low", "_high"))]

    first = ranges()
    assert any(first)
    module(input_ids=ids)
    assert ranges() == first
    hook = FollowRanges(rounding)
    hook.before_step(1, 2, module)
    module(input_ids=ids)
    hook.after_step(module)
    moved = ranges()
    assert moved != first
    module(input_ids=ids)
    assert ranges() == moved


def test_nothing_to_quantize_is_refused() -> None:
    with pytest.raises(ModelError, match="quantize_aware: needs a layer that dynamic-int8"):
        fake_quantized(nn.Sequential(nn.Conv2d(3, 4, 3)), Rounding("dynamic-int8"))


@pytest.mark.parametrize("scheme", ["int8-weights", "int4-weights"])
def test_weights_in_blocks_are_close(scheme: Any, tmp_path: Path) -> None:
    """The kernel rounds activations inside, more finely than a step: not exact, but near."""
    rounding = Rounding(scheme, block_size=16)
    torch.manual_seed(0)
    module = _trained(_Single(True), _rows(Train), rounding)
    feeds = {"x": np.stack([feed["x"] for feed in _rows(Train).feeds])}
    with torch.no_grad():
        expected = module(torch.from_numpy(feeds["x"])).numpy()
    assert released(module) == []
    graph = export_plain(module, feeds, tmp_path / "float")
    found = next(iter(open_run(_quantized(graph, rounding, tmp_path / "q"))(feeds).values()))
    assert _gap(expected, found) < 1.5
