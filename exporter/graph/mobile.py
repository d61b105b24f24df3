"""How much of a graph the accelerators of phones could take, by static lists of operators.

The judgement is onnxruntime's own (`onnxruntime.tools.check_onnx_model_mobile_usability`): it
reads the lists of operators that its NNAPI and CoreML providers have, and counts the pieces that
the graph would fall into. Shapes, attributes and the phone are not looked at, so it is a reason
to try on a phone or not to, and no measurement.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from exporter.graph.model import OnnxModel
from exporter.graph.quiet import quiet
from exporter.graph.session import make_session, read_session, session_options

PROVIDERS = {
    "nnapi": "NNAPI",
    "coreml_neuralnetwork": "CoreML NeuralNetwork",
    "coreml_mlprogram": "CoreML MLProgram",
}


def mobile_usability(model: OnnxModel) -> dict[str, Any]:
    """Provider -> what its lists say of the graph, JSON-ready.

    Each has `as_is` and, where inputs are dynamic, `fixed_shapes`: `nodes`, `supported_nodes`,
    `partitions`, `recommendation` ("yes", "maybe", "no"), `unsupported` operators and
    `dynamic_nodes` that are left out for their shapes alone. A `reason` instead says why the
    checker could not read the graph.

    Raises:
        ModelError: onnxruntime refuses the file.
    """
    import onnxruntime
    from onnxruntime.tools.mobile_helpers import usability_checker as checker
    from onnxruntime.tools.onnx_model_utils import ModelProtoWithShapeInfo

    with tempfile.TemporaryDirectory() as scratch, quiet():
        path = Path(scratch) / "basic.onnx"
        options = session_options(1)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        # Past 2 GB a protobuf cannot hold the weights.
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", f"{path.name}.data"
        )
        make_session(model.path, options, read_session(model))
        try:
            shaped = ModelProtoWithShapeInfo(path).model_with_shape_info
        except Exception as error:  # onnx's inference errors have no base of their own
            reason = f"shapes could not be inferred: {str(error).splitlines()[0]}"
            return {name: {"reason": reason} for name in PROVIDERS}
        dynamic = bool(checker.check_shapes(shaped.graph)[0])

        def look(name: str, fixed: bool) -> dict[str, Any]:
            if name == "nnapi":
                return _told(checker.check_nnapi_partitions(shaped, fixed))
            listed = f"{name.replace('_', '_supported_')}_ops.md"
            return _told(checker.check_coreml_partitions(shaped, fixed, listed))

        return {
            name: {
                "as_is": look(name, True),
                "fixed_shapes": look(name, False) if dynamic else None,
            }
            for name in PROVIDERS
        }


def _told(info: Any) -> dict[str, Any]:
    nodes = int(info.num_nodes)
    return {
        "nodes": nodes,
        "supported_nodes": int(info.num_supported_nodes),
        "partitions": int(info.num_partitions),
        "recommendation": info.suitability().name.lower() if nodes else "no",
        "unsupported": sorted(str(name) for name in info.unsupported_ops),
        "dynamic_nodes": int(info.nodes_unsupported_due_to_dynamic_input),
    }
