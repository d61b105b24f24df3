from pathlib import Path

import pytest
import torch

from sample_models.muon import Muon, orthogonal
from sample_models.training import train
from tests.sample_models.recorded import Recorded


def run(scratch: Path, progress: Recorded) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Linear(8, 16), torch.nn.Dropout(0.3), torch.nn.Linear(16, 4)
    )
    inputs, answers = torch.randn(32, 8), torch.randint(0, 4, (32,))
    optimizers = [
        Muon([module[0].weight], lr=0.02),
        torch.optim.AdamW([module[0].bias, *module[2].parameters()], lr=1e-2),
    ]

    def loss_of(step: int) -> torch.Tensor:
        half = slice(0, 16) if step % 2 else slice(16, 32)
        return torch.nn.functional.cross_entropy(module(inputs[half]), answers[half])

    train(
        module,
        loss_of,
        optimizers,
        name="training",
        steps=20,
        scratch=scratch,
        progress=progress,
        save_every=4,
    )
    return module.state_dict()


def test_an_interrupted_run_goes_on_and_ends_in_the_same_weights(tmp_path: Path) -> None:
    for name in ("straight", "stopped"):
        (tmp_path / name).mkdir()
    straight = run(tmp_path / "straight", Recorded())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", Recorded(stop_after=11))
    resumed = Recorded()
    again = run(tmp_path / "stopped", resumed)
    assert resumed.notes[0] == "training: goes on from step 8"
    for name, weight in straight.items():
        assert torch.equal(weight, again[name]), name


def test_orthogonal_evens_out_singular_values() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, 24, 8) * torch.logspace(0, -2, 8)
    before = torch.linalg.svdvals(matrices)
    after = torch.linalg.svdvals(orthogonal(matrices))
    assert (before[:, 0] / before[:, -1]).min() > 20
    assert ((after > 0.4) & (after < 1.4)).all()
