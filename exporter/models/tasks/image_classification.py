"""image-classification: which class a picture belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from exporter.errors import ModelError
from exporter.models.classify import class_distillation, class_loss, score_classes
from exporter.models.examples import Examples, Feeds, R, Split
from exporter.models.images import image_id, open_image
from exporter.models.runner import Run
from exporter.models.scores import Scores
from exporter.models.tasks import SILENT
from exporter.models.text import feeds_id, feeds_of, label_names, labels_of, prepare_feeds
from exporter.progress import Progress

if TYPE_CHECKING:
    import torch


class ImageClassification:
    """Accuracy over labelled images."""

    name = "image-classification"
    columns: ClassVar[dict[str, tuple[str, ...]]] = {
        "image": ("image", "img", "picture", "photo", "path", "file", "file_name"),
        "label": ("label", "labels", "class", "category", "target", "fine_label"),
    }
    optional: frozenset[str] = frozenset()
    metrics = ("accuracy_drop_points",)

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

    def score(
        self,
        run: Run,
        examples: Examples[Any],
        *,
        batch_size: int = 1,
        progress: Progress = SILENT,
        workers: int = 1,
    ) -> Scores:
        """`correct`, `prediction`, `label` and `nll` of each image."""
        return score_classes(
            self.name, run, examples, batch_size=batch_size, progress=progress, workers=workers
        )

    def relate(self, reference: Scores, candidate: Scores) -> Scores:
        """The candidate's scores as they are."""
        return candidate

    def task_loss(
        self, outputs: Any, feeds: Mapping[str, torch.Tensor], labels: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Cross-entropy over the classes."""
        return class_loss(outputs, labels)

    def distill_loss(
        self,
        student_outputs: Any,
        teacher_outputs: Any,
        feeds: Mapping[str, torch.Tensor],
        temperature: float,
    ) -> torch.Tensor:
        """KL from teacher to student over the classes."""
        return class_distillation(student_outputs, teacher_outputs, temperature)

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
