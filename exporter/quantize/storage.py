"""Read and write model directories while their weights stay on disk as long as possible."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from exporter.graph.model import OnnxModel
from exporter.graph.quiet import quiet
from exporter.graph.tidy import INLINE_LIMIT_BYTES, save_graph


def read_graph(model: OnnxModel) -> Any:
    """The model as an onnx_ir.Model in one form: constants as initializers, functions inlined.

    External weights are mapped from disk, not read.
    """
    import onnx_ir as ir
    from onnx_ir.passes import common

    graph = ir.load(model.path)
    with quiet():
        if graph.functions:
            common.InlinePass()(graph)
        common.LiftConstantsToInitializersPass(lift_all_constants=False)(graph)
        common.RemoveInitializersFromInputsPass()(graph)
        common.NameFixPass()(graph)
    return graph


def write_graph(graph: Any, source: OnnxModel, out: Path) -> OnnxModel:
    """Save `graph` and everything of `source` that is not weights into `out`.

    Weights lie beside the .onnx file when they do in `source`: onnxruntime maps such a file
    into memory where it would have to copy the other.
    """
    from onnx_ir.passes import common

    with quiet():
        common.RemoveUnusedNodesPass()(graph)
        common.RemoveUnusedOpsetsPass()(graph)
        common.TopologicalSortPass()(graph)
    limit = 0 if len(source.weight_files()) > 1 else INLINE_LIMIT_BYTES
    model = save_graph(graph, out, inline_limit_bytes=limit)
    copy_companions(source, out)
    return model


def copy_companions(source: OnnxModel, out: Path) -> None:
    """Copy all files of a model directory but its weights: genai_config, tokenizer, session."""
    weights = set(source.weight_files())
    for path in sorted(source.directory.iterdir()):
        if path in weights:
            continue
        if path.is_dir():
            shutil.copytree(path, out / path.name, dirs_exist_ok=True)
        else:
            shutil.copy2(path, out / path.name)
