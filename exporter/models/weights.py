"""Weight files of a checkpoint: which ones count, and whether they are whole and finite.

The safetensors format is read here directly (a length, a JSON header, raw tensors), so that
a broken file costs one clear message and no torch, and a large one never lies in memory.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.errors import ModelError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER_BYTES = 100 << 20  # the limit of the safetensors library itself
_CHUNK = 1 << 22  # elements looked at at once
_DAMAGED = "download or copy it again."

# dtype name -> (numpy type of its bits, mask whose bits are all set in NaN and inf)
_FLOATS: dict[str, tuple[str, int]] = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("u1", 0x7C),
    "F8_E4M3": ("u1", 0x7F),
}


def weight_files(directory: Path, *, allow_pickle: bool) -> list[Path]:
    """The files that hold the weights of a checkpoint, existing ones only.

    Raises:
        ModelError: none is there, a shard is missing, or only pickles are and they are not allowed.
    """
    if (directory / SINGLE).is_file():
        return [directory / SINGLE]
    if (directory / INDEX).is_file():
        return _shards(directory)
    pickles = sorted(p for p in directory.glob("*.bin") if p.name.startswith("pytorch_model"))
    if pickles and allow_pickle:
        return pickles
    if pickles:
        raise ModelError(
            str(directory),
            "must hold its weights as safetensors",
            got=", ".join(p.name for p in pickles),
            remedy="convert them, or pass --allow-pickle if you trust who made the file.",
        )
    raise ModelError(
        str(directory),
        f"must hold {SINGLE}",
        remedy="save the model with save_pretrained, which writes it.",
    )


def _shards(directory: Path) -> list[Path]:
    place = f"{directory}/{INDEX}"
    try:
        names = sorted(
            {str(n) for n in json.loads((directory / INDEX).read_bytes())["weight_map"].values()}
        )
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(
            place, "must map tensors to files", got=str(error), remedy=_DAMAGED
        ) from error
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(
                place, "may only name safetensors files beside it", got=name, remedy=_DAMAGED
            )
        if not (directory / name).is_file():
            raise ModelError(
                f"{directory}/{name}", "is named in the index and missing", remedy=_DAMAGED
            )
    return [directory / name for name in names]


def check_safetensors(path: Path) -> None:
    """Prove that a safetensors file is whole and holds only finite numbers.

    Raises:
        ModelError: truncated, malformed, or with a NaN or inf (the tensor is named).
    """
    header, start = _header(path)
    size = path.stat().st_size
    end = start
    for name, entry in header.items():
        try:
            first, last = (int(offset) for offset in entry["data_offsets"])
            dtype = str(entry["dtype"])
        except (LookupError, TypeError, ValueError) as error:
            raise ModelError(
                f"{path}: {name}", "must have a dtype and data_offsets", remedy=_DAMAGED
            ) from error
        if not 0 <= first <= last or start + last > size:
            raise ModelError(
                str(path),
                f"is truncated: tensor {name} ends at byte {start + last}",
                got=f"{size} bytes",
                remedy=_DAMAGED,
            )
        end = max(end, start + last)
        if dtype in _FLOATS and last > first:
            kind, mask = _FLOATS[dtype]
            width = np.dtype(kind).itemsize
            bits = np.memmap(path, kind, "r", start + first, ((last - first) // width,))
            if not_finite(bits, mask):
                raise nan_error(str(path), name)
    if end != size:
        raise ModelError(
            str(path), f"must end after its last tensor, at byte {end}", got=size, remedy=_DAMAGED
        )


def nan_error(place: str, tensor: str) -> ModelError:
    """The refusal of weights that hold NaN or inf."""
    return ModelError(
        place,
        f"weights must be finite, {tensor} holds NaN or inf",
        remedy="training diverged: export an earlier checkpoint.",
    )


def not_finite(bits: NDArray[Any], mask: int) -> bool:
    """True when any number's exponent bits are all set; looks at a few MiB at once."""
    return any(
        bool(np.any((bits[i : i + _CHUNK] & mask) == mask)) for i in range(0, bits.size, _CHUNK)
    )


def _header(path: Path) -> tuple[dict[str, Any], int]:
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
        if not 2 <= length <= MAX_HEADER_BYTES or 8 + length > size:
            raise ModelError(
                str(path),
                "is truncated or no safetensors file: its header does not fit",
                got=f"{size} bytes",
                remedy=_DAMAGED,
            )
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise ModelError(
                str(path), "must start with a JSON header", got=str(error), remedy=_DAMAGED
            ) from error
    if not isinstance(header, dict):
        raise ModelError(str(path), "must start with a JSON object", remedy=_DAMAGED)
    header.pop("__metadata__", None)
    return header, 8 + length
