"""Size: bytes on the disk and bytes over the air."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from exporter.budget import Budget
from exporter.graph.model import OnnxModel
from exporter.judge.verdict import Judgement, judged

# On random float32 and int8 weights level 19 saved nothing over level 10, in 100 times the time.
ZSTD_LEVEL = 10
MIB = 1 << 20


@dataclass(frozen=True)
class Size:
    """Bytes of model.onnx and its external data, as they lie and compressed by zstd."""

    disk_bytes: int
    download_bytes: int


def measure_size(model: OnnxModel) -> Size:
    """Count the model's bytes, and compress each file as it would travel; deterministic."""
    files = model.weight_files()
    return Size(
        sum(path.stat().st_size for path in files), sum(compressed_bytes(path) for path in files)
    )


def compressed_bytes(path: Path) -> int:
    """Bytes of a file after zstd at level 10, read in pieces."""
    import zstandard

    compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compressobj(size=path.stat().st_size)
    total = 0
    with path.open("rb") as file:
        while chunk := file.read(MIB):
            total += len(compressor.compress(chunk))
    return total + len(compressor.flush())


def judge_size(reference: Size, candidate: Size, budget: Budget) -> Judgement:
    """Judge one of the four size budgets; bytes are counted, so bounds equal the figure."""
    download = budget.kind.metric.startswith("download")
    before = (reference.download_bytes if download else reference.disk_bytes) / MIB
    after = (candidate.download_bytes if download else candidate.disk_bytes) / MIB
    ratio = budget.kind.metric.endswith("ratio")
    measured = after / before if ratio else after
    what = f"zstd level {ZSTD_LEVEL}" if download else "model files"
    return judged(
        budget,
        measured=measured,
        low=measured,
        high=measured,
        reason=f"{before:.4g} MiB became {after:.4g} MiB ({what}).",
        reference=before,
        candidate=after,
        value_unit="MiB",
        count=1,
    )
