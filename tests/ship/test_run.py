"""run.py answers what the original answers, with neither torch nor transformers to import."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.ship.runner import TEMPLATES
from tests.ship.conftest import Shipped
from tests.tiny import LABELS

Ship = Callable[[str], Shipped]
Run = Callable[..., Any]

TEXT = "the red cat sees a tree under the house"
ALLOWED = {"numpy", "onnxruntime", "onnxruntime_genai", "tokenizers", "PIL"}


def _probabilities(module: Any, feeds: dict[str, Any]) -> np.ndarray[Any, Any]:
    import torch

    with torch.no_grad():
        return torch.softmax(module(**feeds).logits[0], -1).numpy()


def _answers(line: str) -> dict[str, float]:
    """`... -> animal 61.2%, other 20.1%` as shares by label."""
    found = re.findall(r"(\S+) (\d+\.\d)%", line.split("->")[1])
    return {name: float(share) / 100 for name, share in found}


@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("run_*.py")), ids=lambda p: p.stem)
def test_needs_only_the_runtime(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {str(n.module) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    roots = {name.split(".")[0] for name in names}
    assert roots - set(sys.stdlib_module_names) <= ALLOWED


def test_text_classification(shipped: Ship, run_bare: Run) -> None:
    bundle = shipped("bert")
    done = run_bare(bundle.directory, TEXT, "good dog")
    assert done.returncode == 0, done.stderr
    for text, line in zip((TEXT, "good dog"), done.stdout.splitlines(), strict=True):
        assert line.startswith(f"{text} ->")
        wanted = _probabilities(bundle.module, dict(bundle.preprocessor(text, return_tensors="pt")))
        answers = _answers(line)
        assert list(answers) == [LABELS[i] for i in np.argsort(-wanted)]
        for label, share in answers.items():
            assert share == pytest.approx(wanted[LABELS.index(label)], abs=6e-4)


def test_long_texts_are_cut_as_they_were_judged(shipped: Ship, run_bare: Run) -> None:
    bundle = shipped("bert")
    text = "the cat runs over a blue house " * 20
    done = run_bare(bundle.directory, text)
    assert done.returncode == 0, done.stderr
    feeds = bundle.preprocessor(text, return_tensors="pt", truncation=True, max_length=32)
    assert feeds["input_ids"].shape == (1, 32)
    wanted = _probabilities(bundle.module, dict(feeds))
    for label, share in _answers(done.stdout).items():
        assert share == pytest.approx(wanted[LABELS.index(label)], abs=6e-4)


def test_feature_extraction(shipped: Ship, run_bare: Run) -> None:
    import torch

    bundle = shipped("bert-encoder")
    texts = (TEXT, "a blue bird eats", "two fish")
    done = run_bare(bundle.directory, *texts)
    assert done.returncode == 0, done.stderr
    vectors = []
    for text in texts:
        with torch.no_grad():
            hidden = bundle.module(**bundle.preprocessor(text, return_tensors="pt"))
        vectors.append(hidden.last_hidden_state[0].mean(0).numpy())
    said = [float(x) for x in re.findall(r"cosine (-?\d\.\d{4})", done.stdout)]
    wanted = [
        float(vectors[0] @ v / np.linalg.norm(vectors[0]) / np.linalg.norm(v)) for v in vectors[1:]
    ]
    assert said == pytest.approx(wanted, abs=2e-4)
    assert "32 dimensions" in done.stdout


@pytest.mark.parametrize(
    ("family", "template"), [("qwen3", "onnxruntime_genai"), ("gpt2", "argmax")]
)
def test_text_generation(family: str, template: str, shipped: Ship, run_bare: Run) -> None:
    """Greedy tokens are those of the original, step by step with its cache."""
    import torch

    bundle = shipped(family)
    assert template in (bundle.directory / "run.py").read_text(encoding="utf-8")
    done = run_bare(bundle.directory, TEXT, "12")
    assert done.returncode == 0, done.stderr
    ids = bundle.preprocessor(TEXT, return_tensors="pt").input_ids
    with torch.no_grad():
        wanted = bundle.module.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
        )[0]
    assert len(wanted) > ids.shape[1] + 1
    text = bundle.preprocessor.decode(wanted, skip_special_tokens=True)
    assert done.stdout.split() == text.split()
    assert done.stdout.startswith(TEXT)


def test_image_classification(shipped: Ship, run_bare: Run, tmp_path: Path) -> None:
    from PIL import Image

    bundle = shipped("mobilenetv2")
    noise = np.random.default_rng(1).integers(0, 256, (40, 56, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    done = run_bare(bundle.directory, str(tmp_path / "noise.png"))
    assert done.returncode == 0, done.stderr
    feeds = bundle.preprocessor(images=[Image.fromarray(noise)], return_tensors="pt")
    wanted = _probabilities(bundle.module, dict(feeds))
    for label, share in _answers(done.stdout).items():
        assert share == pytest.approx(wanted[LABELS.index(label)], abs=6e-4)


@pytest.mark.parametrize("family", ["bert", "bert-encoder", "qwen3", "gpt2", "mobilenetv2"])
def test_says_how_to_use_it(family: str, shipped: Ship, run_bare: Run) -> None:
    done = run_bare(shipped(family).directory)
    assert done.returncode == 1
    assert done.stderr.startswith("usage: python run.py ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("run_*.py")), ids=lambda p: p.stem)
def test_a_missing_package_is_named_in_one_line(path: Path) -> None:
    code = f"import runpy, sys; sys.modules['numpy'] = None; runpy.run_path({str(path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "numpy" in done.stderr
    assert "; pip install onnxruntime" in done.stderr


def test_a_missing_picture_is_named_in_one_line(shipped: Ship, run_bare: Run) -> None:
    done = run_bare(shipped("mobilenetv2").directory, "none.png")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("none.png is no picture")


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_texts_that_do_not_fit_are_refused(family: str, shipped: Ship, run_bare: Run) -> None:
    done = run_bare(shipped(family).directory, "the cat " * 64)
    assert done.returncode == 1
    assert done.stderr.startswith("the text must have 1 to 127 tokens, it has 128")


def test_runs_with_the_settings_that_were_measured(shipped: Ship, run_bare: Run) -> None:
    """session.json reaches the session."""
    spy = (
        "import onnxruntime\n"
        "class Spy(onnxruntime.InferenceSession):\n"
        "    def __init__(self, *args, **options):\n"
        "        print('disabled', options['disabled_optimizers'])\n"
        "        super().__init__(*args, **options)\n"
        "onnxruntime.InferenceSession = Spy\n"
    )
    bundle = shipped("bert")
    settings = bundle.directory / "model" / "session.json"
    before = settings.read_bytes() if settings.is_file() else None
    try:
        settings.write_text(json.dumps({"disabled_optimizers": ["SkipLayerNormFusion"]}))
        done = run_bare(bundle.directory, TEXT, before=spy)
    finally:
        settings.unlink()
        if before is not None:
            settings.write_bytes(before)
    assert "disabled ['SkipLayerNormFusion']" in done.stdout, done.stderr
