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

# Architectures that the builder knows and that take text alone. Whether its graph of one model
# is right is found out by running it (odd head sizes and some rotary scalings are not).
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
    """True when the builder takes this module's architecture."""
    return type(module).__name__ in ARCHITECTURES


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
    _as_the_builder_reads_it(options["hf_details"]["hf_config"])
    with _corrected():
        create_model(*where, **options)


def _as_the_builder_reads_it(config: Any) -> None:
    """Say in transformers 4's words what transformers 5 says otherwise; weights load apart."""
    rotary = getattr(config, "rope_parameters", None) or {}
    if "full_attention" in rotary and "sliding_attention" in rotary:
        config.rope_local_base_freq = rotary["sliding_attention"]["rope_theta"]
        config.rope_theta = rotary["full_attention"]["rope_theta"]
        config.rope_parameters = rotary["full_attention"]
    if getattr(config, "sliding_window", None) and getattr(config, "layer_types", None) is None:
        # Mistral and Phi-3: a window means that every layer has it.
        config.layer_types = ["sliding_attention"] * config.num_hidden_layers


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
