"""A small residual network that reads handwritten digits: scikit-learn's, 8 × 8 grey levels."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from exporter.cache import Cache
from exporter.errors import DataError
from exporter.progress import Progress, Silent
from sample_models.sources import distribution_version
from sample_models.splitting import deal
from sample_models.stored import stored
from sample_models.training import train

if TYPE_CHECKING:
    import torch

# One misread image in 600 is 0.17 points: enough to show a margin of one point.
COUNTS = {"test": 600, "development": 400}


@dataclass(frozen=True)
class Size:
    """Shape and training; three basic blocks a stage cost about 1 ms an image on one core,
    enough arithmetic for integer kernels to matter."""

    pixels: int = 32
    widths: tuple[int, ...] = (64, 128, 256)
    blocks: int = 3
    batch: int = 32
    steps: int = 700
    learning_rate: float = 2e-3


def build(*, cache: Cache | None = None, progress: Progress | None = None) -> Path:
    """The directory of the sample, with `model/` and `data/`; trained if it is not there."""
    progress = progress or Silent()
    images, labels = read_digits()
    settings = {
        "size": asdict(Size()),
        "counts": COUNTS,
        "data": hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest(),
        "pillow": distribution_version("pillow"),
    }
    return stored(
        "digits",
        Path(__file__),
        settings,
        lambda out, scratch: make(out, scratch, size=Size(), counts=COUNTS, progress=progress),
        cache,
    )


def read_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (n, 8, 8) with levels 0 to 255, and their digits (n,).

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "package scikit-learn",
            "must be installed for this sample",
            remedy='install the samples extra: pip install "exporter[samples]".',
        ) from error
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return images, digits.target.astype(np.int64)


def make(
    out: Path, scratch: Path, *, size: Size, counts: dict[str, int], progress: Progress
) -> None:
    """Fill `out` with an image folder by split and digit, and a trained network."""
    from transformers import ViTImageProcessorPil

    images, labels = read_digits()
    names = [hashlib.sha256(image.tobytes()).hexdigest()[:16] for image in images]
    first = {name: i for i, name in reversed(list(enumerate(names)))}
    kept = sorted(first.values())
    sides = np.asarray(deal([names[i] for i in kept], range(len(kept)), counts))
    write_images(out / "data", images[kept], labels[kept], sides, [names[i] for i in kept])
    processor = ViTImageProcessorPil(
        size={"height": size.pixels, "width": size.pixels}, resample=2, do_convert_rgb=True
    )
    chosen = np.asarray(kept)[sides == "train"]
    model = fit(images[chosen], labels[chosen], processor, size, scratch, progress)
    model.save_pretrained(out / "model")
    processor.save_pretrained(out / "model")


def write_images(
    data: Path,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    sides: NDArray[Any],
    names: list[str],
) -> None:
    """`data/SPLIT/DIGIT/NAME.png`, three equal channels."""
    from PIL import Image

    for image, label, side, name in zip(images, labels, sides, names, strict=True):
        folder = data / str(side) / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).convert("RGB").save(folder / f"{name}.png")


def fit(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    processor: Any,
    size: Size,
    scratch: Path,
    progress: Progress,
) -> Any:
    """A residual network (He et al., 2015) trained on shifted, turned and scaled images."""
    import torch
    from PIL import Image
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    model = ResNetForImageClassification(
        ResNetConfig(
            embedding_size=size.widths[0],
            hidden_sizes=list(size.widths),
            depths=[size.blocks] * len(size.widths),
            layer_type="basic",
            id2label={i: str(i) for i in range(10)},
            label2id={str(i): i for i in range(10)},
        )
    )
    pictures = [Image.fromarray(image).convert("RGB") for image in images]
    pixels = torch.from_numpy(
        np.stack([np.asarray(p) for p in processor(pictures)["pixel_values"]])
    )  # (n, 3, pixels, pixels)
    answers = torch.from_numpy(labels)

    def loss_of(step: int) -> torch.Tensor:
        rng = np.random.default_rng((0, step))
        chosen = torch.from_numpy(rng.integers(0, len(pixels), size.batch))
        moved = _moved(pixels[chosen], rng)
        logits = model(pixel_values=moved).logits
        return torch.nn.functional.cross_entropy(
            logits.float(), answers[chosen], label_smoothing=0.05
        )

    optimizer = torch.optim.AdamW(model.parameters(), lr=size.learning_rate, weight_decay=0.05)
    train(
        model,
        loss_of,
        [optimizer],
        name="digits: training",
        steps=size.steps,
        scratch=scratch,
        progress=progress,
    )
    return model


def _moved(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Each image turned by up to 12°, scaled by up to 10 % and shifted by up to one cell of 8."""
    import torch

    count = len(pixels)
    angle = rng.uniform(-0.21, 0.21, count)
    scale = rng.uniform(0.9, 1.1, count)
    shift = rng.uniform(-0.25, 0.25, (count, 2))  # of half the width
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    matrix = np.stack(
        [np.stack([cos, -sin, shift[:, 0]], 1), np.stack([sin, cos, shift[:, 1]], 1)], 1
    )  # (count, 2, 3)
    grid = torch.nn.functional.affine_grid(
        torch.from_numpy(matrix).float(), list(pixels.shape), align_corners=False
    )
    return torch.nn.functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
