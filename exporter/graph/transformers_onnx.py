"""Hugging Face models: transformers' own ONNX exporter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.graph.model import OnnxModel
from exporter.graph.module import tiled
from exporter.graph.session import PAST_PREFIX, PRESENT_PREFIX
from exporter.graph.tidy import keep_outputs, name_axes, save_graph, split_gemms
from exporter.models.examples import Feeds

if TYPE_CHECKING:
    import torch

_TRACED_PAST = 4


def export_transformers(
    module: torch.nn.Module, example: Feeds, output: str, task: str, out: Path
) -> OnnxModel:
    """Write an encoder, a vision model or a language model to `out` as one graph.

    A language model's graph takes tokens and a cache and returns logits and the grown cache:
    an empty cache makes it a prefill, any other a decoding step.

    Args:
        example: inputs with the batch axis in front; those that `forward` lacks are dropped.
        output: the one output to keep (besides the cache).
    """
    import torch
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    from exporter.models.runner import forward_names

    accepted = forward_names(module)
    inputs: dict[str, Any] = {
        name: torch.from_numpy(tiled(a, 2)) for name, a in example.items() if name in accepted
    }
    if "attention_mask" in inputs:
        inputs["attention_mask"][0, -2:] = 0  # no tracer may think that nothing is ever masked
    axes = {
        name: {0: "batch", 1: "sequence"} if tensor.ndim == 2 else {0: "batch"}
        for name, tensor in inputs.items()
    }
    shapes: dict[str, Any] = {
        name: dict.fromkeys(named, torch.export.Dim.DYNAMIC) for name, named in axes.items()
    }
    if task == "text-generation":
        _with_cache(module, inputs, axes, shapes)
    exported = OnnxExporter().export(
        module,
        inputs,
        OnnxConfig(dynamic=True, dynamic_shapes=shapes),
    )
    model = exported.program
    for value in [*model.graph.inputs, *model.graph.outputs]:
        value.name = _cache_name(value.name)
    for value in model.graph.inputs:
        if value.name.startswith(PAST_PREFIX):
            axes[value.name] = {0: "batch", 2: "past"}
    names = [v.name for v in model.graph.outputs]
    wanted = output if output in names else names[0]
    keep_outputs(model, [wanted, *(n for n in names if n.startswith(PRESENT_PREFIX))])
    name_axes(model, axes)
    split_gemms(model)
    return save_graph(model, out)


def _with_cache(
    module: torch.nn.Module,
    inputs: dict[str, Any],
    axes: dict[str, dict[int, str]],
    shapes: dict[str, Any],
) -> None:
    """Turn a prefill's inputs into those of a step that goes on from a cache."""
    import torch

    from exporter.models.runner import forward_names

    dynamic = torch.export.Dim.DYNAMIC
    tokens, mask = inputs["input_ids"], inputs["attention_mask"]
    with torch.no_grad():
        cache = module(input_ids=tokens[:, :_TRACED_PAST], use_cache=True).past_key_values
    rest = tokens[:, _TRACED_PAST:]
    inputs.clear()
    inputs["input_ids"], inputs["attention_mask"] = rest, mask
    axes["attention_mask"][1] = "total"
    if "position_ids" in forward_names(module):
        inputs["position_ids"] = torch.arange(_TRACED_PAST, tokens.shape[1]).repeat(len(tokens), 1)
        axes["position_ids"] = {0: "batch", 1: "sequence"}
        shapes["position_ids"] = {0: dynamic, 1: dynamic}
    inputs["past_key_values"] = cache
    # One key and one value a layer, each (batch, heads, past, head_dim).
    shapes["past_key_values"] = [{0: dynamic, 2: dynamic} for _ in range(2 * len(cache.layers))]
    for name in set(shapes) - set(inputs):
        del shapes[name]


def _cache_name(name: str) -> str:
    """`past_key_values.3.key` and `present.3.key` for the exporter's own names of the cache."""
    side, _, rest = name.partition(".past_key_values.layers.")
    if not rest:
        return name
    layer, kind = rest.split(".")
    return f"{PAST_PREFIX if side == 'input' else PRESENT_PREFIX}{layer}.{kind.removesuffix('s')}"
