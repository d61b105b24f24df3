"""Plain modules: torch.onnx.export with a dynamic batch."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.graph.model import OnnxModel
from exporter.graph.tidy import name_axes, save_graph, split_gemms
from exporter.models.examples import Feeds

if TYPE_CHECKING:
    import torch


def export_plain(module: torch.nn.Module, example: Feeds, out: Path) -> OnnxModel:
    """Write a module to `out`; outputs are called as `torch_run` calls them.

    Args:
        example: inputs by the names of `forward`, with the batch axis in front. Batch is
            dynamic, and so is the second axis of two-axis integer inputs (tokens), if the
            module allows it.
    """
    import torch

    from exporter.models.runner import named_outputs

    class Named(torch.nn.Module):
        """The module with its tensors returned by name."""

        def __init__(self) -> None:
            super().__init__()
            self.module = module

    def forward(**inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return named_outputs(module(**inputs))

    # torch.export names inputs by the signature, and cannot give shapes to `**inputs`.
    keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, keyword) for name in example]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper = Named().eval()
    wrapper.forward = forward
    feeds = {name: torch.from_numpy(tiled(a, 2)) for name, a in example.items()}
    axes: dict[str, dict[int, str]] = {}
    shapes: dict[str, dict[int, Any]] = {}
    for name, tensor in feeds.items():
        axes[name], shapes[name] = {0: "batch"}, {0: torch.export.Dim.DYNAMIC}
        if tensor.ndim == 2 and not tensor.is_floating_point():
            axes[name][1], shapes[name][1] = "sequence", torch.export.Dim.AUTO
    with torch.no_grad():
        names = list(wrapper(**feeds))
        program = torch.export.export(wrapper, args=(), kwargs=feeds, dynamic_shapes=shapes)
        exported = torch.onnx.export(
            program,
            args=(),
            kwargs=feeds,
            input_names=list(feeds),
            output_names=names,
            dynamo=True,
            verbose=False,
        )
    if exported is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    model = exported.model
    name_axes(model, axes)
    split_gemms(model)
    return save_graph(model, out)


def tiled(array: Any, batch: int) -> Any:
    """`array` repeated along its batch axis to exactly `batch` rows."""
    times = -(-batch // len(array))
    return np.ascontiguousarray(np.concatenate([array] * times)[:batch])
