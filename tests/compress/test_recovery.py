"""What recovery can be asked for: adapters, hidden states, a tried weight, a bound to stop at."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporter.compress.finetune import fine_tune
from exporter.compress.history import FineTuneResult
from exporter.compress.hooks import Hook
from exporter.compress.looks import gap_bound
from exporter.compress.low_rank import add_adapters, merge_adapters
from exporter.compress.matching import check_same_tokens
from exporter.compress.prune import prune
from exporter.compress.resume import NAME
from exporter.compress.sparsity import zero_masks
from exporter.compress.steps import optimizer_of
from exporter.compress.teaching import hidden_pairs
from exporter.errors import DataError, ModelError, RecoveryError
from exporter.models.examples import Development, Examples, Train
from exporter.recipe import FineTune, Pruning
from tests import tiny as tiny_models
from tests.compress.conftest import Tiny

Checkpoints = Callable[[str], Tiny]


def _tune(tiny: Tiny, scratch: Path, student: Any, teacher: Any, **options: Any) -> FineTuneResult:
    values = {"steps": 12, "batch_size": 8, "learning_rate": 1e-3, "evaluate_every": 4}
    layers = options.pop("layers", None)
    return fine_tune(
        student,
        teacher,
        tiny.task,
        tiny.examples(Train, 48, seed=1),
        tiny.examples(Development, 24, seed=2),
        FineTune(**{**values, **options}),
        seed=0,
        scratch=scratch,
        layers=layers,
    )


def _pruned(tiny: Tiny, **ratios: float) -> Any:
    return prune(tiny.module(), tiny.task, tiny.examples(Train), Pruning(**ratios)).module


def _outputs(tiny: Tiny, module: Any) -> torch.Tensor:
    batch = next(tiny.examples(Development, 6).batches(6))
    feeds = {k: torch.from_numpy(np.array(v)) for k, v in batch.feeds.items()}
    with torch.no_grad():
        answer: torch.Tensor = module.eval()(**feeds)[0]
    return answer


@pytest.mark.parametrize("family", ["bert", "gpt2", "qwen3", "mobilenetv2"])
def test_adapters_merge_into_what_they_computed(family: str, tiny_checkpoint: Checkpoints) -> None:
    """Merged answers bit for bit as adapted, zeros are zero, and only adapters learn."""
    tiny = tiny_checkpoint(family)
    module = _pruned(tiny, sparsity=0.6)
    zeros = {name: mask.clone() for name, mask in zero_masks(module).items()}
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    add_adapters(module, 2, zero_masks(module), seed=0)
    learned = {name: p for name, p in module.named_parameters() if p.requires_grad}
    assert learned
    assert all("parametrizations" in name for name in learned)
    with torch.no_grad():
        for parameter in learned.values():
            parameter.normal_()
    adapted = _outputs(tiny, module)
    merge_adapters(module)
    assert torch.equal(_outputs(tiny, module), adapted)
    after = dict(module.named_parameters())
    assert after.keys() == before.keys()
    assert all(bool((after[name][mask] == 0).all()) for name, mask in zeros.items())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed >= set(zeros)
    assert not {name for name in changed if before[name].ndim < 2}
    assert all(p.requires_grad for p in module.parameters())


def test_low_rank_recovery(tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    tiny = tiny_checkpoint("bert-encoder")
    student = _pruned(tiny, ffn=0.5, sparsity=0.5)
    zeros = {name: mask.clone() for name, mask in zero_masks(student).items()}
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    count = sum(p.numel() for p in student.parameters())
    options = {"rank": 1, "learning_rate": 1e-2}
    result = _tune(tiny, tmp_path, student, tiny.module(), **options)
    after = dict(result.module.named_parameters())
    assert result.best_step > 0
    assert after.keys() == before.keys()
    for name, mask in zeros.items():
        assert bool((after[name][mask] == 0).all())
        assert "pooler" in name or not torch.equal(after[name], before[name])
    assert torch.equal(
        after["embeddings.word_embeddings.weight"], before["embeddings.word_embeddings.weight"]
    )
    state = torch.load(tmp_path / NAME, weights_only=True)
    moments = [s for each in state["optimizer"]["state"].values() for s in each.values()]
    assert sum(m.numel() for m in moments) < 0.25 * 2 * count
    assert sum(v.numel() for v in state["best"].values()) < 0.25 * count
    rest = _pruned(tiny, ffn=0.5, sparsity=0.5)
    again = _tune(tiny, tmp_path, rest, tiny.module(), **options)
    assert all(torch.equal(value, after[name]) for name, value in again.module.named_parameters())


def test_adapters_need_matrices() -> None:
    with pytest.raises(ModelError, match=r"fine_tune.rank: needs matrices to adapt"):
        add_adapters(torch.nn.LayerNorm(4), 2, {}, seed=0)


def test_nothing_to_learn_from_leaves_no_adapters(
    tiny_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    tiny = tiny_checkpoint("bert-encoder")
    result = _tune(tiny, tmp_path, tiny.module(), None, rank=2)
    before = tiny.module().state_dict()
    assert result.history == []
    assert all(torch.equal(v, before[name]) for name, v in result.module.state_dict().items())


def test_adapters_are_not_shaped(tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    tiny = tiny_checkpoint("bert")
    with pytest.raises(ModelError, match=r"fine_tune.rank: trains adapters alone"):
        fine_tune(
            tiny.module(),
            None,
            tiny.task,
            tiny.examples(Train, 12),
            tiny.examples(Development, 12),
            FineTune(rank=1),
            seed=0,
            scratch=tmp_path,
            hooks=[Hook()],
        )


def test_full_training_learns_everything(tiny_checkpoint: Checkpoints) -> None:
    module = tiny_checkpoint("bert").module()
    learned = sum(len(g["params"]) for g in optimizer_of(module).param_groups)
    assert learned == len(list(module.parameters()))


@pytest.mark.parametrize(
    ("student", "teacher", "kept", "pairs"),
    [
        (2, 4, None, [(0, 0), (1, 2), (2, 4)]),
        (3, 3, None, [(0, 0), (1, 1), (2, 2), (3, 3)]),
        (2, 4, [0, 1], [(0, 0), (1, 1), (2, 4)]),
        (3, 6, [0, 3, 5], [(0, 0), (1, 1), (2, 4), (3, 6)]),
    ],
)
def test_hidden_states_are_compared_with_those_they_came_from(
    student: int, teacher: int, kept: list[int] | None, pairs: list[tuple[int, int]]
) -> None:
    assert hidden_pairs(student, teacher, kept) == pairs


def _hidden_distance(tiny: Tiny, scratch: Path, student: Any, teacher: Any) -> float:
    """Between the last hidden states, relative, where training ended."""
    state = torch.load(scratch / NAME, weights_only=True)["model"]
    student.load_state_dict({n.removeprefix("student."): v for n, v in state.items()})
    batch = next(tiny.examples(Development, 24, seed=2).batches(24))
    feeds = {k: torch.from_numpy(np.array(v)) for k, v in batch.feeds.items()}
    with torch.no_grad():
        ours, theirs = (
            m.eval()(**feeds, output_hidden_states=True).hidden_states[-1]
            for m in (student, teacher)
        )
    return float((ours - theirs).square().mean() / theirs.square().mean())


@pytest.mark.parametrize("family", ["bert", "llama", "vit"])
def test_hidden_states_come_closer(
    family: str, tiny_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    tiny = tiny_checkpoint(family)
    teacher = tiny.module()
    options = {"steps": 24, "distill_weight": 1.0, "evaluate_every": 24, "learning_rate": 3e-3}
    apart = []
    for weight in (0.0, 3.0):
        scratch = tmp_path / str(weight)
        student = _pruned(tiny, ffn=0.5)
        _tune(tiny, scratch, student, teacher, hidden_weight=weight, **options)
        apart.append(_hidden_distance(tiny, scratch, student, teacher))
    assert apart[1] < 0.8 * apart[0]


def test_other_widths_meet_in_a_projection(tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    """It learns too, goes on after a stop, and is not part of the student."""
    from transformers import BertForSequenceClassification

    tiny = tiny_checkpoint("bert")
    config = tiny.module().config
    config.hidden_size, config.num_hidden_layers = 16, 1
    torch.manual_seed(3)
    narrow = BertForSequenceClassification(config)
    names = set(narrow.state_dict())
    result = _tune(tiny, tmp_path, narrow, tiny.module(), hidden_weight=1.0, layers=[1])
    assert set(result.module.state_dict()) == names
    assert result.best_step > 0
    state = torch.load(tmp_path / NAME, weights_only=True)
    assert state["model"]["projection.weight"].shape == (32, 16)


def test_layers_that_are_not_the_teachers(tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    tiny = tiny_checkpoint("bert")
    for layers in ([0, 2], [1, 0], [0]):
        with pytest.raises(ModelError, match="must name 2 of the teacher's 2 layers"):
            _tune(tiny, tmp_path, tiny.module(), tiny.module(), hidden_weight=1.0, layers=layers)


def test_the_gap_to_the_teacher_and_its_bound() -> None:
    """A ratio over documents: windows of one are one observation."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        owner = np.repeat(np.arange(30), 4)
        shared = rng.normal(0.1, 1.0, 30)[owner]
        high = gap_bound(shared, np.ones(120), owner)[1]
        assert high is not None
        covered += high >= 0.1
    assert 0.92 <= covered / 400 <= 0.98
    assert gap_bound(np.zeros(4), np.ones(4), [0, 1, 2, 3]) == (0.0, 0.0)
    assert gap_bound(np.asarray([1.0, 3.0]), np.asarray([3.0, 1.0]), [0, 0]) == (1.5, None)


def test_the_bound_of_few_documents_is_students_and_of_uneven_ones_a_ratios() -> None:
    """By hand: of three documents t₂ at 95 % is 2.92, not 1.645, and their sums are weighed."""
    even = np.asarray([0.0, 1.0, 2.0])
    gap, high = gap_bound(even, np.ones(3), [0, 1, 2])
    assert gap == 1.0
    assert high == pytest.approx(1.0 + 2.919986 * 1.0 / math.sqrt(3), rel=1e-6)
    # Losses of 1 a token in documents of 1, 1 and 8 tokens: the ratio has no spread at all.
    assert gap_bound(np.ones(3), np.asarray([1.0, 1.0, 8.0]), [0, 1, 2]) == (1.0, 1.0)
    uneven, tokens = np.asarray([2.0, 0.0, 1.0]), np.asarray([1.0, 1.0, 8.0])
    gap, high = gap_bound(uneven, tokens, [0, 1, 2])
    assert gap == 1.0
    left = math.sqrt(2 * 3 / 2)  # residuals 1, −1 and 0, by n / (n − 1)
    assert high == pytest.approx(1.0 + 2.919986 * left / 10, rel=1e-6)


def test_stops_where_it_is_shown_to_be_close_enough(
    tiny_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    tiny = tiny_checkpoint("qwen3")
    options = {"steps": 40, "learning_rate": 3e-3, "patience": 100}
    full = _tune(tiny, tmp_path / "full", _pruned(tiny, ffn=0.5), tiny.module(), **options)
    bounds = [float(entry["gap_high"] or 0) for entry in full.history]
    assert all(entry["gap_high"] > entry["gap"] for entry in full.history)  # type: ignore[operator]
    goal = (bounds[0] + min(bounds)) / 2
    reached = next(i for i, bound in enumerate(bounds) if bound <= goal)
    assert 0 < reached < len(bounds) - 1
    early = _tune(
        tiny,
        tmp_path / "early",
        _pruned(tiny, ffn=0.5),
        tiny.module(),
        stop_gap=goal,
        **options,
    )
    assert early.history == full.history[: reached + 1]
    assert early.gap_high is not None
    assert early.gap_high <= goal


def test_a_student_that_is_its_teacher_needs_no_step(
    tiny_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    tiny = tiny_checkpoint("bert")
    result = _tune(tiny, tmp_path, tiny.module(), tiny.module(), stop_gap=0.0)
    assert len(result.history) == 1
    assert (result.best_step, result.gap_high) == (0, 0.0)


def test_the_weight_that_wins_its_trial(tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    """A teacher of noise is worth nothing: the labels win. A trial changes nothing else."""
    tiny = tiny_checkpoint("bert")
    options = {"steps": 40, "learning_rate": 3e-3}
    student = _pruned(tiny, ffn=0.5)
    tried = _tune(tiny, tmp_path / "auto", student, tiny.module(), distill_weight="auto", **options)
    assert set(tried.trials) == {1.0, 0.5}
    best = min(tried.trials, key=lambda weight: tried.trials[weight])
    assert best == 0.5
    fixed = _tune(
        tiny,
        tmp_path / "fixed",
        _pruned(tiny, ffn=0.5),
        tiny.module(),
        distill_weight=best,
        **options,
    )
    assert fixed.history == tried.history
    assert fixed.trials == {}
    other = fixed.module.state_dict()
    assert all(torch.equal(v, other[name]) for name, v in tried.module.state_dict().items())


def test_nothing_is_tried_without_a_loss_of_the_task(
    tiny_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    tiny = tiny_checkpoint("bert-encoder")
    result = _tune(
        tiny,
        tmp_path,
        _pruned(tiny, ffn=0.5, compensate="none"),
        tiny.module(),
        distill_weight="auto",
        steps=4,
    )
    assert result.trials == {}
    assert result.best_step > 0
    with pytest.raises(DataError, match="needs labels"):
        _tune(tiny, tmp_path / "0", _pruned(tiny, ffn=0.5), tiny.module(), distill_weight=0.0)


def test_accumulated_parts_take_the_step_of_the_batch(
    tiny_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    """Also for token means, where parts hold different numbers of tokens."""
    tiny = tiny_checkpoint("llama")
    options = {"hidden_weight": 1.0, "steps": 6}
    whole = _tune(tiny, tmp_path / "1", _pruned(tiny, ffn=0.5), tiny.module(), **options)
    parted = _tune(
        tiny, tmp_path / "3", _pruned(tiny, ffn=0.5), tiny.module(), accumulate=3, **options
    )
    other = parted.module.state_dict()
    for name, value in whole.module.state_dict().items():
        torch.testing.assert_close(other[name], value, atol=3e-5, rtol=1e-4)


def test_bfloat16_is_another_arithmetic(tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    tiny = tiny_checkpoint("bert")
    results = [
        _tune(tiny, tmp_path / str(p), _pruned(tiny, ffn=0.5), tiny.module(), mixed_precision=p)
        for p in ("auto", "no", "bfloat16")
    ]
    losses = [r.history[-1]["development_loss"] for r in results]
    assert losses[0] == losses[1] != losses[2], "so small a model is faster in float32"
    assert losses[2] == pytest.approx(losses[1], rel=0.05)
    assert all(p.dtype == torch.float32 for p in results[2].module.parameters())


@pytest.mark.parametrize("entry", ["vocab_size", "num_labels", "classes"])
def test_a_teacher_of_another_kind_is_refused(
    entry: str, tiny_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification

    tiny = tiny_checkpoint("bert")
    config = tiny.module().config
    if entry == "vocab_size":
        config.vocab_size = 80
    elif entry == "num_labels":
        config.num_labels = 4
    else:
        config.label2id = {name: 2 - i for i, name in enumerate(tiny_models.LABELS)}
        config.id2label = {i: name for name, i in config.label2id.items()}
    teacher = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(ModelError, match=r"the teacher: must have the student's .*, got "):
        _tune(tiny, tmp_path, tiny.module(), teacher)


def test_a_teacher_that_reads_other_tokens_is_refused() -> None:
    encoder, decoder = tiny_models.tokenizer("encoder"), tiny_models.tokenizer("decoder")
    check_same_tokens(encoder, tiny_models.tokenizer("encoder"), ["the cat"])
    check_same_tokens(None, encoder, ["the cat"])
    with pytest.raises(ModelError, match="must have the student's tokenizer"):
        check_same_tokens(encoder, decoder, ["the cat"])


def _spoiled(module: Any) -> Any:
    with torch.no_grad():
        module.classifier.bias[0] = math.nan
    return module


def test_losses_that_are_no_numbers_are_told_before_training(
    tiny_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    tiny = tiny_checkpoint("bert")
    with pytest.raises(RecoveryError, match="the student's loss on development data is not"):
        _tune(tiny, tmp_path, _spoiled(tiny.module()), tiny.module())
    with pytest.raises(RecoveryError, match="the teacher's loss on development data is not"):
        _tune(tiny, tmp_path, tiny.module(), _spoiled(tiny.module()))


def test_labels_beyond_the_classes_are_refused(
    tiny_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    tiny = tiny_checkpoint("bert")
    good: Examples[Any] = tiny.examples(Train, 12)
    assert good.labels is not None
    labels = good.labels.copy()
    labels[3] = 3
    wrong = Examples(Train, good.ids, good.feeds, good.owner, labels, good.pad)
    with pytest.raises(DataError, match=r"labels must be 0 to 2, .*, got 3"):
        fine_tune(
            tiny.module(),
            None,
            tiny.task,
            wrong,
            tiny.examples(Development, 12),
            FineTune(steps=1),
            seed=0,
            scratch=tmp_path,
        )


@pytest.mark.parametrize("role", [Train, Development])
def test_a_split_without_examples_is_refused(
    role: Any, tiny_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    tiny = tiny_checkpoint("bert")
    train, development = (
        tiny.examples(one, 4).head(0 if one is role else 4) for one in (Train, Development)
    )
    with pytest.raises(DataError, match=f"the {role.name} split: must hold examples"):
        fine_tune(
            tiny.module(),
            tiny.module(),
            tiny.task,
            train,
            development,
            FineTune(steps=1),
            seed=0,
            scratch=tmp_path,
        )


def test_labels_that_only_development_data_has_teach_nothing(
    tiny_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    tiny = tiny_checkpoint("bert")
    unlabelled = replace(tiny.examples(Train, 8), labels=None)
    with pytest.raises(DataError, match="the train split: must have labels"):
        fine_tune(
            tiny.module(),
            None,
            tiny.task,
            unlabelled,
            tiny.examples(Development, 8),
            FineTune(steps=1),
            seed=0,
            scratch=tmp_path,
        )


def test_a_teacher_that_takes_something_else_is_refused(
    tiny_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    tiny, other = tiny_checkpoint("bert"), tiny_checkpoint("vit")
    with pytest.raises(ModelError, match="student's input, input_ids, got pixel_values"):
        _tune(tiny, tmp_path, tiny.module(), other.module())
