"""Take over an .onnx file that the user already has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from exporter.errors import ModelError
from exporter.graph.model import GENAI_CONFIG, MODEL_FILE, OnnxModel
from exporter.graph.quiet import quiet
from exporter.graph.session import open_run
from exporter.graph.tidy import save_graph, split_gemms

# Quantizing by channel needs DequantizeLinear with an axis, which came with opset 13.
OLDEST_OPSET, UPGRADED_OPSET = 13, 17


def adopt_onnx(path: Path, out: Path) -> OnnxModel:
    """Write the model at `path` to `out` in our layout, weights unchanged.

    External data moves along, an opset before 13 is raised, documentation is dropped, and
    `genai_config.json` with the tokenizer beside it comes too.

    Args:
        path: a model that `check_onnx_file` has proved valid.

    Raises:
        ModelError: it cannot be read, raised to a newer opset, or loaded by onnxruntime.
    """
    import onnx_ir as ir

    with quiet():
        model = _upgraded(path, ir.load(path))
        split_gemms(model)
        adopted = save_graph(model, out)
    if (path.parent / GENAI_CONFIG).is_file():
        _copy_genai(path, out)
    run = open_run(adopted)
    if not run.inputs or not run.outputs:
        raise ModelError(
            str(path),
            "must have inputs and outputs",
            got=f"{len(run.inputs)} and {len(run.outputs)}",
            remedy="give the graph that is run, not a fragment of it.",
        )
    return adopted


def _upgraded(path: Path, model: Any) -> Any:
    import onnx
    import onnx_ir as ir

    opset = model.opset_imports.get("", UPGRADED_OPSET)
    if opset >= OLDEST_OPSET:
        return model
    try:
        return ir.from_proto(
            onnx.version_converter.convert_version(onnx.load(str(path)), UPGRADED_OPSET)
        )
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(
            str(path),
            f"must use opset {OLDEST_OPSET} or later",
            got=f"opset {opset}, which does not convert: {str(error).splitlines()[0]}",
            remedy="export it again with a newer opset.",
        ) from error


def _copy_genai(path: Path, out: Path) -> None:
    """The runtime's configuration, pointing at our file name, and the tokenizer it loads.

    Raises:
        ModelError: the configuration is malformed.
    """
    place = path.parent / GENAI_CONFIG
    try:
        facts = json.loads(place.read_text(encoding="utf-8"))
        facts["model"]["decoder"]["filename"] = MODEL_FILE
    except (ValueError, LookupError, TypeError) as error:
        raise ModelError(
            str(place),
            "must describe a decoder for onnxruntime-genai",
            got=f"{type(error).__name__}: {error}",
            remedy="build it again, or remove it to use plain onnxruntime.",
        ) from error
    text = json.dumps(facts, indent=4)
    (out / GENAI_CONFIG).write_text(text + "\n", encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (path.parent / name).is_file():
            shutil.copyfile(path.parent / name, out / name)
