"""A bold cut is taken in rounds that each remove a third at most, and ends where one cut ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from exporter.compress.prune import prune
from exporter.compress.rounds import SLACK, body_parameters, plan_rounds
from exporter.errors import ProfileError
from exporter.models.examples import Train
from exporter.recipe import Pruning
from exporter.rounds import joined, kept_layers
from tests.compress.conftest import Tiny

Checkpoints = Callable[[str], Tiny]


def _followed(tiny: Tiny, plans: tuple[Pruning, ...]) -> tuple[list[float], list[Any], Any]:
    """Shares of the parameters that the rounds remove, what each said, and the module."""
    module = tiny.module()
    shares, removals = [], []
    for plan in plans:
        result = prune(module, tiny.task, tiny.examples(Train), plan)
        shares.append(1 - body_parameters(result.module) / body_parameters(module))
        removals.append(result.removed)
        module = result.module
    return shares, removals, module


@pytest.mark.parametrize(
    ("family", "ratios"),
    [
        ("llama", {"ffn": 0.75, "heads": 0.5}),
        ("qwen3", {"ffn": 0.875, "sparsity": 0.5}),
        ("bert", {"ffn": 0.875}),
        ("vit", {"ffn": 0.875, "heads": 0.75}),
    ],
)
def test_no_round_removes_more_than_a_third(
    family: str, ratios: dict[str, float], tiny_checkpoint: Checkpoints
) -> None:
    tiny = tiny_checkpoint(family)
    pruning = Pruning(**ratios)
    plans = plan_rounds(tiny.module(), tiny.task, tiny.examples(Train), pruning, 1 / 3)
    shares, removals, module = _followed(tiny, plans)
    at_once = prune(tiny.module(), tiny.task, tiny.examples(Train), pruning)
    assert len(plans) > 1
    if family != "llama":  # of its two groups one goes: a third of the model, all at once
        assert max(shares) <= 1 / 3 + SLACK
    for part in ("ffn", "heads"):
        if part in at_once.removed:
            assert joined(removals)[part]["after"] == at_once.removed[part]["after"]
            assert joined(removals)[part]["before"] == at_once.removed[part]["before"]
    assert body_parameters(module) == body_parameters(at_once.module)
    assert [bool(plan.sparsity) for plan in plans[:-1]] == [False] * (len(plans) - 1)
    assert plans[-1].sparsity == pruning.sparsity
    assert all(plan.criterion == pruning.criterion for plan in plans)


@pytest.mark.parametrize(
    "pruning", [Pruning(ffn=0.25), Pruning(sparsity=0.9), Pruning(ffn=0.875)], ids=str
)
def test_a_mild_cut_is_one_round(pruning: Pruning, tiny_checkpoint: Checkpoints) -> None:
    tiny = tiny_checkpoint("bert")
    largest = 1.0 if pruning.ffn > 0.5 else 1 / 3
    assert plan_rounds(tiny.module(), tiny.task, tiny.examples(Train), pruning, largest) == (
        pruning,
    )


def test_what_cannot_be_divided_goes_at_once(tiny_checkpoint: Checkpoints) -> None:
    """Of two layers one goes: half the model, however many rounds there are."""
    tiny = tiny_checkpoint("bert")
    pruning = Pruning(layers=0.5)
    assert plan_rounds(tiny.module(), tiny.task, tiny.examples(Train), pruning, 1 / 3) == (pruning,)


def test_layers_of_several_rounds(tiny_checkpoint: Checkpoints) -> None:
    tiny = tiny_checkpoint("modernbert")
    plans = plan_rounds(tiny.module(), tiny.task, tiny.examples(Train), Pruning(layers=0.6), 1 / 3)
    _, removals, module = _followed(tiny, plans)
    assert len(plans) == 2
    assert len(kept_layers(removals) or ()) == module.config.num_hidden_layers == 1
    assert kept_layers(removals) == [0], "the first layer is pinned"
    assert joined(removals)["layers"] == {
        "before": 3, "after": 1, "kept": [0], "importance": removals[0]["layers"]["importance"],
    }  # fmt: skip


def test_kept_layers_are_those_of_the_original() -> None:
    def gone(kept: list[int], before: int) -> dict[str, Any]:
        layers = {"before": before, "after": len(kept), "kept": kept, "importance": [1.0] * before}
        return {"layers": layers, "ffn": {"before": 8, "after": 4, "importance_kept": 0.5}}

    removals = [gone([0, 2, 3, 5], 6), {"criterion": "wanda"}, gone([1, 3], 4)]
    assert kept_layers(removals) == [2, 5]
    total = joined(removals)
    assert total["layers"]["before"] == 6
    assert total["ffn"]["importance_kept"] == 0.25
    assert total["rounds"] == 3


def test_ratios_that_leave_nothing_are_refused(tiny_checkpoint: Checkpoints) -> None:
    tiny = tiny_checkpoint("bert")
    with pytest.raises(ProfileError, match="must leave at least"):
        plan_rounds(tiny.module(), tiny.task, tiny.examples(Train), Pruning(layers=0.99), 1 / 3)


@pytest.mark.parametrize("family", ["bert", "qwen3"])
def test_no_more_rounds_than_it_takes(family: str, tiny_checkpoint: Checkpoints) -> None:
    tiny = tiny_checkpoint(family)
    pruning = Pruning(ffn=0.875)
    plans = plan_rounds(tiny.module(), tiny.task, tiny.examples(Train), pruning, 1 / 3)
    whole = body_parameters(tiny.module())
    left = body_parameters(prune(tiny.module(), tiny.task, tiny.examples(Train), pruning).module)
    # As many thirds as make the whole as small as what is left, and not one more.
    assert (2 / 3 - SLACK) ** len(plans) <= left / whole < (2 / 3) ** (len(plans) - 1)
