"""Images as data gives them: paths, encoded bytes, arrays or PIL pictures."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np

from exporter.errors import DataError


def open_image(value: Any) -> Any:
    """A PIL picture from a path, `{"bytes", "path"}`, an array (height, width[, channels]) or PIL.

    Raises:
        DataError: it is none of these, or cannot be decoded.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        if isinstance(value, Image.Image):
            return value
        if isinstance(value, np.ndarray):
            return Image.fromarray(_bytes(value))
        if isinstance(value, dict) and value.get("bytes"):
            value = io.BytesIO(value["bytes"])
        elif isinstance(value, dict) and value.get("path"):
            value = value["path"]
        if isinstance(value, str | Path | io.BytesIO):
            with Image.open(value) as picture:
                picture.load()
                return picture
    except (OSError, UnidentifiedImageError, ValueError, TypeError, SyntaxError) as error:
        place = str(value) if isinstance(value, str | Path) else "an image in the data"
        raise DataError(
            place, "must be a readable image", got=str(error), remedy="replace or remove it."
        ) from error
    except Image.DecompressionBombError as error:
        raise DataError(
            str(value), "is too large to decode safely", got=str(error), remedy="make it smaller."
        ) from error
    raise DataError(
        "the image column",
        "must hold paths, images or arrays",
        got=type(value).__name__,
        remedy="name the column that holds the images.",
    )


def image_id(value: Any) -> str:
    """SHA-256 over mode, size and pixels: the same picture in another file format is the same."""
    picture = open_image(value)
    if picture.mode not in ("L", "RGB"):
        picture = picture.convert("RGB")
    digest = hashlib.sha256(f"{picture.mode}{picture.size}".encode())
    digest.update(picture.tobytes())
    return digest.hexdigest()


def _bytes(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """An array of 0–255 bytes; floats must be shares of white, 0 to 1."""
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "f" and array.size and array.min() >= 0 and array.max() <= 1:
        return np.round(array * 255).astype(np.uint8)
    if array.dtype.kind in "iu" and array.size and array.min() >= 0 and array.max() <= 255:
        return array.astype(np.uint8)
    raise ValueError(f"pixels must be bytes 0–255 or floats 0–1, not {array.dtype}")
