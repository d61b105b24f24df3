"""image-classification: which class a picture belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from exporter.errors import ModelError
from exporter.models.classify import Classifier
from exporter.models.examples import Examples, Feeds, R, Split
from exporter.models.images import image_id, open_image
from exporter.models.text import feeds_id, feeds_of, label_names, labels_of, prepare_feeds


class ImageClassification(Classifier):
    """Accuracy over labelled images."""

    name = "image-classification"
    columns: ClassVar[dict[str, tuple[str, ...]]] = {
        "image": ("image", "img", "picture", "photo", "path", "file", "file_name"),
        "label": ("label", "labels", "class", "category", "target", "fine_label"),
    }
    optional: frozenset[str] = frozenset()

    def row_id(self, row: Mapping[str, Any]) -> str:
        """Content hash of the pixels."""
        return image_id(row["image"]) if "image" in row else feeds_id(row)

    def prepare(
        self,
        split: Split[R],
        preprocessor: Any,
        config: dict[str, Any],
        *,
        max_length: int,
        limit: int | None = None,
    ) -> Examples[R]:
        """One feed a row: its `pixel_values`, (channels, height, width)."""
        rows = split.rows[:limit]
        if preprocessor is None or all(feeds_of(row) and "image" not in row for row in rows):
            return prepare_feeds(split, config, limit, labelled=True)
        mode = "L" if config.get("num_channels") == 1 else "RGB"
        feeds = tuple(
            {"pixel_values": _pixels(preprocessor, open_image(row["image"]).convert(mode))}
            for row in rows
        )
        return Examples(
            split.role,
            split.ids[: len(rows)],
            feeds,
            tuple(range(len(feeds))),
            labels_of(rows),
            {},
            {"labels": label_names(config)},
        )

    def example_feeds(
        self, config: dict[str, Any], preprocessor: Any, *, batch: int, length: int
    ) -> Feeds:
        """Noise as the processor gives it, (batch, channels, height, width)."""
        from PIL import Image

        channels = int(config.get("num_channels") or 3)
        rng = np.random.default_rng(0)
        if preprocessor is not None:
            noise = rng.integers(0, 256, (batch, 64, 64, channels), np.uint8)
            pictures = [Image.fromarray(n[..., 0] if channels == 1 else n) for n in noise]
            return {"pixel_values": np.stack([_pixels(preprocessor, p) for p in pictures])}
        size = config.get("image_size")
        if not size:
            raise ModelError(
                "the model",
                "must tell its image size to make example inputs",
                remedy="put preprocessor_config.json beside it.",
            )
        height, width = size if isinstance(size, list | tuple) else (size, size)
        pixels = rng.standard_normal((batch, channels, int(height), int(width)), np.float32)
        return {"pixel_values": pixels}


def _pixels(preprocessor: Any, picture: Any) -> np.ndarray[Any, Any]:
    """The processor's float32 pixels of one picture, (channels, height, width)."""
    try:
        values = preprocessor(images=[picture], return_tensors="np")["pixel_values"][0]
    except (ValueError, TypeError) as error:
        raise ModelError(
            "the model",
            f"its image processor must fit {picture.mode} images",
            got=" ".join(str(error).split())[:200],
            remedy="set image_mean, image_std and num_channels to agree.",
        ) from error
    return np.asarray(values, np.float32)


TASK = ImageClassification()
