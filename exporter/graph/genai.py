"""Language models that onnxruntime-genai knows: its own builder."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.graph.model import GENAI_CONFIG, OnnxModel
from exporter.graph.session import PAST_PREFIX, PRESENT_PREFIX
from exporter.graph.tidy import save_graph

if TYPE_CHECKING:
    import torch

# Architectures of the builder whose float32 graph runs on the CPU and that take text alone.
# https://github.com/microsoft/onnxruntime-genai, src/python/py/models/builder.py, 0.18.0
ARCHITECTURES = frozenset(
    {
        "Ernie4_5ForCausalLM",
        "GemmaForCausalLM",
        "Gemma2ForCausalLM",
        "Gemma3ForCausalLM",
        "GraniteForCausalLM",
        "HunYuanDenseV1ForCausalLM",
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "NemotronForCausalLM",
        "OlmoForCausalLM",
        "PhiForCausalLM",
        "Phi3ForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "SmolLM3ForCausalLM",
    }
)


def knows(module: torch.nn.Module) -> bool:
    """True when the builder makes a graph of this module's architecture."""
    # One set of rotary parameters a layer type: the builder would scale all types alike.
    nested = _rotary_by_layer_type(getattr(module, "config", None))
    scaled = any(p.get("rope_type", "default") != "default" for p in nested.values())
    # GroupQueryAttention with rotary inside wants it (onnxruntime 1.32, group_query_attention.cc).
    odd = (getattr(getattr(module, "config", None), "head_dim", None) or 16) % 16 != 0
    return type(module).__name__ in ARCHITECTURES and not scaled and not odd


def _rotary_by_layer_type(config: Any) -> dict[str, dict[str, Any]]:
    parameters = getattr(config, "rope_parameters", None) or {}
    return {k: v for k, v in parameters.items() if isinstance(v, dict) and k.endswith("_attention")}


def build_genai(
    module: torch.nn.Module, tokenizer: Any, checkpoint: Path | None, out: Path
) -> OnnxModel:
    """Write the builder's fused float32 graph, its `genai_config.json` and the tokenizer.

    Args:
        checkpoint: the directory that `module` was loaded from; None saves it first.
    """
    # Within `out`, not in the system's temporary place: a language model is large.
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        if checkpoint is None:
            checkpoint = Path(scratch) / "checkpoint"
            module.save_pretrained(checkpoint)  # type: ignore[operator]
            tokenizer.save_pretrained(checkpoint)
        built = Path(scratch) / "built"
        _build(checkpoint, built, Path(scratch) / "cache")
        return _adopt(built, out)


def _build(checkpoint: Path, built: Path, cache: Path) -> None:
    # Importing the package puts the builder's own folder on sys.path, as it wants.
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    where = ("", str(checkpoint), str(built), "fp32", "cpu", str(cache))
    # Without a window's cache of fixed size, plain onnxruntime can begin with an empty one.
    options = parse_extra_options(*where, ["windowed_kv_cache=false"])
    config = options["hf_details"]["hf_config"]
    nested = _rotary_by_layer_type(config)
    if nested:
        # The builder reads them as transformers 4 wrote them. Weights are loaded apart from this.
        config.rope_local_base_freq = nested["sliding_attention"]["rope_theta"]
        config.rope_theta = nested["full_attention"]["rope_theta"]
        config.rope_parameters = nested["full_attention"]
    with _corrected():
        create_model(*where, **options)


@contextmanager
def _corrected() -> Iterator[None]:
    """Mend two things in the builder while it works.

    It takes every Linear with as many outputs as there are tokens for the head, so a
    feed-forward layer as wide as the vocabulary would take the head's place. And it rounds
    Gemma's embedding scale to two decimals, as bfloat16 would; float32 does not.
    """
    from builders.base import Model  # type: ignore[import-not-found]

    looks_like_head, make_embedding = Model.has_lm_head, Model.make_embedding

    def has_lm_head(self: Any, module: Any) -> bool:
        return bool(looks_like_head(self, module)) and (
            module is self.weights.get_output_embeddings()
        )

    def make_exact_embedding(self: Any, embedding: Any) -> None:
        exact = math.sqrt(self.hidden_size)
        if self.embed_attrs["scale"] == round(exact, 2):
            self.embed_attrs["scale"] = exact
        make_embedding(self, embedding)

    Model.has_lm_head, Model.make_embedding = has_lm_head, make_exact_embedding
    try:
        yield
    finally:
        Model.has_lm_head, Model.make_embedding = looks_like_head, make_embedding


def _adopt(built: Path, out: Path) -> OnnxModel:
    """Move what the builder wrote to `out`, its graph in our layout."""
    import onnx_ir as ir

    graph = ir.load(built / "model.onnx")
    width = json.loads((built / GENAI_CONFIG).read_text())["model"]["decoder"]["head_size"]
    for value in [*graph.graph.inputs, *graph.graph.outputs]:
        if value.name.startswith((PAST_PREFIX, PRESENT_PREFIX)):
            # Said by a name only; whoever makes an empty cache needs the number.
            value.shape = ir.Shape([*list(value.shape)[:3], width])
    model = save_graph(graph, out)
    for path in sorted(built.iterdir()):
        if not path.name.startswith("model.onnx"):
            shutil.move(path, out / path.name)
    return model
