from pathlib import Path

import numpy as np
import pytest

from sample_models import digits
from tests.sample_models.recorded import Recorded

TINY = digits.Size(pixels=16, widths=(16, 32), blocks=1, batch=32, steps=80, learning_rate=4e-3)
COUNTS = {"test": 200, "development": 100}


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, scratch = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("scratch")
    digits.make(out, scratch, size=TINY, counts=COUNTS, progress=Recorded())
    return out


def test_image_folder_holds_every_digit_once_by_split_and_class(sample: Path) -> None:
    sides = {p.name: sorted(p.glob("*/*.png")) for p in (sample / "data").iterdir()}
    assert set(sides) == {"train", "development", "test"}
    assert len(sides["test"]) == 200
    assert len(sides["development"]) == 100
    names = [path.name for paths in sides.values() for path in paths]
    images, _ = digits.read_digits()
    assert len(names) == len(set(names)) == len({image.tobytes() for image in images})
    for split in sides:
        assert {p.name for p in (sample / "data" / split).iterdir()} == {str(i) for i in range(10)}


def test_checkpoint_is_ordinary_and_reads_unseen_digits(sample: Path) -> None:
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    processor = AutoImageProcessor.from_pretrained(sample / "model")
    model = AutoModelForImageClassification.from_pretrained(sample / "model").eval()
    assert model.config.label2id == {str(i): i for i in range(10)}
    paths = sorted((sample / "data" / "test").glob("*/*.png"))
    pixels = processor([Image.open(p) for p in paths], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (200, 3, 16, 16)
    with torch.no_grad():
        said = model(pixel_values=pixels).logits.argmax(-1).numpy()
    meant = np.asarray([int(p.parent.name) for p in paths])
    assert (said == meant).mean() > 0.6


def test_labels_belong_to_the_images(sample: Path) -> None:
    import hashlib

    images, labels = digits.read_digits()
    right = {
        hashlib.sha256(image.tobytes()).hexdigest()[:16]: str(label)
        for image, label in zip(images, labels, strict=True)
    }
    for path in (sample / "data").glob("*/*/*.png"):
        assert right[path.stem] == path.parent.name
