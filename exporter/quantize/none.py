"""none: the float32 graph as it is, for candidates whose gain is pruning alone."""

from __future__ import annotations

import shutil
from pathlib import Path

from exporter.graph.model import OnnxModel
from exporter.quantize import QuantizeOptions, QuantizeResult
from exporter.quantize.storage import copy_companions

CALIBRATED = False


def applies(model: OnnxModel, task: str) -> str | None:
    """Always."""
    return None


def quantize(model: OnnxModel, out: Path, options: QuantizeOptions) -> QuantizeResult:
    """Copy the model; see `exporter.quantize.Scheme`."""
    out.mkdir(parents=True, exist_ok=True)
    copy_companions(model, out)
    for path in model.weight_files():
        shutil.copyfile(path, out / path.name)
    return QuantizeResult(OnnxModel(out), planned=0, integer=0)
