"""Clusters stay clusters while they learn, also where the student trains to be rounded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from exporter.compress.clusters import KeepClusters
from exporter.compress.finetune import fine_tune
from exporter.compress.importance import prunable_weights
from exporter.compress.qat import FollowRanges, fake_quantized, observe, released
from exporter.compress.ranges import Rounding
from exporter.models.examples import Development, Train
from exporter.recipe import FineTune
from tests.compress.conftest import Tiny

Checkpoints = Callable[[str], Tiny]


def _clustered(module: torch.nn.Module) -> None:
    """Weights of all matrices but one at eleven levels, one of them zero."""
    for name, part in list(prunable_weights(module).items())[1:]:
        weight = part.weight
        assert isinstance(weight, torch.Tensor), name
        step = weight.detach().abs().max() / 5
        weight.data = (weight.detach() / step).round() * step


def test_shared_values_learn_together(tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    tiny = tiny_checkpoint("bert")
    student = tiny.module()
    _clustered(student)
    before = {n: p.detach().clone() for n, p in student.named_parameters()}
    clusters = KeepClusters(student)
    assert set(clusters.names) == set(list(prunable_weights(student))[1:])
    rounding = Rounding("static-int8")
    fake_quantized(student, rounding)
    observe(student, tiny.examples(Train), 4)
    result = fine_tune(
        student,
        tiny.module(),
        tiny.task,
        tiny.examples(Train, 48, seed=1),
        tiny.examples(Development, 24, seed=2),
        FineTune(steps=8, batch_size=8, learning_rate=1e-3, evaluate_every=4),
        seed=0,
        scratch=tmp_path,
        hooks=[clusters, FollowRanges(rounding)],
    )
    assert result.best_step > 0
    released(result.module)
    after = dict(result.module.named_parameters())
    for name in clusters.names:
        values, labels = before[name].unique(return_inverse=True)
        assert not torch.equal(before[name], after[name])
        assert (after[name][before[name] == 0] == 0).all()
        for label in range(len(values)):
            assert len(after[name][labels == label].unique()) == 1
