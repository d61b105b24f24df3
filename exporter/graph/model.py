"""OnnxModel: a directory with one model.onnx and everything that travels with it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from exporter.cache import sha256_file

MODEL_FILE = "model.onnx"
GENAI_CONFIG = "genai_config.json"


@dataclass(frozen=True)
class OnnxModel:
    """A model on disk.

    Attributes:
        directory: holds `model.onnx`, its external data if any (`model.onnx.data`), and for
            language models that onnxruntime-genai runs, `genai_config.json`.
    """

    directory: Path

    @property
    def path(self) -> Path:
        """The .onnx file."""
        return self.directory / MODEL_FILE

    @property
    def genai(self) -> bool:
        """True when onnxruntime-genai loads this directory."""
        return (self.directory / GENAI_CONFIG).is_file()

    def weight_files(self) -> list[Path]:
        """model.onnx and its external data files: what counts as model size."""
        return sorted(p for p in self.directory.iterdir() if p.name.startswith(MODEL_FILE))

    def weights_sha256(self) -> str:
        """One SHA-256 over the names and contents of the weight files."""
        lines = "".join(f"{p.name}\0{sha256_file(p)}\n" for p in self.weight_files())
        return hashlib.sha256(lines.encode()).hexdigest()
