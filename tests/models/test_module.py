"""A plain module is the code that computes, not only the weights it computes with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from exporter.models.source import resolve_source

_MODEL = """
import torch
from constants import SCALE
from layers import Half

class Net(torch.nn.Module):
    def __init__(self, slope=1.0):
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)
        self.halved = Half()
        self.slope = slope

    def forward(self, x):
        return self.halved(self.linear(x)) * SCALE * self.slope

def build():
    inputs = torch.randn(1, 3)  # another one each time
    torch.manual_seed(0)
    return Net(), inputs
"""
_LAYERS = """
import torch

class Half(torch.nn.Module):
    def forward(self, x):
        return x / 2
"""


def _hash(directory: Path) -> str:
    """The content hash as a new process tells it."""
    code = (
        "from exporter.models.source import resolve_source; "
        "print(resolve_source('net:build', task='feature-extraction').content_hash)"
    )
    command = [sys.executable, "-B", "-c", code]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture
def net(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(_MODEL)
    (tmp_path / "layers.py").write_text(_LAYERS)
    (tmp_path / "constants.py").write_text("SCALE = 1.0\n")
    return tmp_path


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("net.py", "* SCALE", "* SCALE + 0.0001"),
        ("layers.py", "x / 2", "x / 2.0001"),
        ("constants.py", "1.0", "3.0"),
        ("net.py", "Net()", "Net(slope=-1.0)"),
    ],
)
def test_an_edited_forward_is_another_model(net: Path, file: str, old: str, new: str) -> None:
    before = _hash(net)
    path = net / file
    path.write_text(path.read_text().replace(old, new))
    assert _hash(net) != before


def test_the_same_code_is_the_same_model_wherever_it_lies(net: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in net.glob("*.py"):
        (moved / path.name).write_text(path.read_text())
    assert _hash(net) == _hash(net) == _hash(moved)


def test_a_module_that_does_not_run_on_made_up_inputs_has_a_hash(
    net: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (net / "net.py").read_text()
    (net / "refuses.py").write_text(text.replace("return self.halved", "raise KeyError(x)"))
    monkeypatch.chdir(net)
    monkeypatch.syspath_prepend(str(net))
    assert resolve_source("refuses:build", task="feature-extraction").content_hash
