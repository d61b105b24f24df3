"""Teaching: the loss that a student is trained on, from its teacher's answers and the labels.

Forward KL on the answers follows Hinton et al. (arXiv:1503.02531), and Minitron for pruned
models (arXiv:2407.14679); hidden states through a learned projection follow TinyBERT
(arXiv:1909.10351).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from exporter.compress.activations import tensors
from exporter.compress.replicas import Share
from exporter.models.examples import Batch
from exporter.models.runner import forward_names
from exporter.models.tasks import Task

EPSILON = 1e-6


class Answering:
    """A module's answers to batches: on its device, in bfloat16 arithmetic where that is faster.

    Attributes:
        module: what answers.
        device: where it lies.
        half: whether matrices are multiplied in bfloat16.
    """

    def __init__(self, module: nn.Module, device: torch.device, *, half: bool) -> None:
        self.module = module
        self.device = device
        self.half = half
        self._names = forward_names(module)
        self._extra = {"use_cache": False} if "use_cache" in self._names else {}

    def feeds(self, batch: Batch) -> dict[str, Tensor]:
        """The batch's inputs that the module takes."""
        return {k: v.to(self.device) for k, v in tensors(batch, self._names).items()}

    def labels(self, batch: Batch) -> Tensor | None:
        """The batch's labels, (batch,)."""
        return None if batch.labels is None else torch.from_numpy(batch.labels).to(self.device)

    def __call__(self, feeds: dict[str, Tensor], *, hidden: bool = False) -> Any:
        """The module's own outputs; with `hidden` also `hidden_states`."""
        extra = {**self._extra, "output_hidden_states": True} if hidden else self._extra
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half):
            return self.module(**feeds, **extra)


class Learner(nn.Module):
    """A student with what it learns from; called with part of a batch, it returns the loss.

    The loss is computed within, so that replicas see which parameters it reaches.
    """

    def __init__(
        self,
        student: Answering,
        teacher: Answering | None,
        task: Task,
        *,
        distill_weight: float,
        temperature: float,
        hidden_weight: float = 0.0,
        layers: Sequence[tuple[int, int]] = (),
        projection: nn.Linear | None = None,
    ) -> None:
        """Put student and teacher together.

        Args:
            layers: pairs of hidden states (student's, teacher's) that are compared.
            projection: from the student's width to the teacher's, where they differ.
        """
        super().__init__()
        self.student = student.module
        self.projection = projection
        self.answering = student
        self.teaching = teacher  # no submodule: it is not trained
        self._task = task
        self._distill_weight = distill_weight
        self._temperature = temperature
        self._hidden_weight = hidden_weight if teacher is not None else 0.0
        self._layers = tuple(layers)

    def forward(self, batch: Batch, share: Share) -> Tensor:
        """The part's loss, weighted by what it counts in the whole batch; a scalar."""
        feeds = self.answering.feeds(batch)
        hidden = self._hidden_weight > 0
        outputs = self.answering(feeds, hidden=hidden)
        own = None
        if self.teaching is None or self._distill_weight < 1:
            own = self._task.task_loss(outputs, feeds, self.answering.labels(batch))
        if self.teaching is None:
            assert own is not None
            return own * share.own
        with torch.no_grad():
            taught = self.teaching(self.teaching.feeds(batch), hidden=hidden)
        if own is not None and self._distill_weight == 0:
            loss = own * share.own
        else:
            loss = self._task.distill_loss(outputs, taught, feeds, self._temperature)
            loss = loss * share.distilled
            if own is not None:
                weight = self._distill_weight
                loss = weight * loss + (1 - weight) * (own * share.own)
        if hidden:
            apart = self._apart(outputs.hidden_states, taught.hidden_states, feeds)
            loss = loss + self._hidden_weight * (apart * share.feeds)
        return loss

    def _apart(
        self, ours: Sequence[Tensor], theirs: Sequence[Tensor], feeds: dict[str, Tensor]
    ) -> Tensor:
        """How far hidden states are apart: mean of |s − t|² / |t|² over positions, then over
        feeds and layers. Relative, so that one weight fits layers of any scale.
        """
        total = ours[0].new_zeros((), dtype=torch.float32)
        for student, teacher in self._layers:
            told, target = ours[student].float(), theirs[teacher].float()  # (batch, ..., width)
            if self.projection is not None:
                told = self.projection(told)
            far = (told - target).square().sum(-1) / (target.square().sum(-1) + EPSILON)
            mask = feeds.get("attention_mask")
            if mask is not None and mask.shape == far.shape:
                kept = mask.to(far.dtype)
                total = total + ((far * kept).sum(1) / kept.sum(1).clamp(min=1)).mean()
            else:
                total = total + far.flatten(1).mean(1).mean()
        return total / len(self._layers)


def hidden_pairs(
    student: int, teacher: int, kept: Sequence[int] | None = None
) -> list[tuple[int, int]]:
    """Which hidden states are compared: (student's, teacher's) indices, 0 is the embedding.

    Args:
        student, teacher: numbers of layers.
        kept: for each of the student's layers, the teacher's that it came from; None spreads
            them evenly, as TinyBERT does.

    The last state is compared with the last: families put their final norm there.
    """
    if kept is not None and len(kept) == student:
        after = [index + 1 for index in kept]
    else:
        after = [round((i + 1) * teacher / student) for i in range(student)]
    after[-1] = teacher
    return [(0, 0), *((i + 1, layer) for i, layer in enumerate(after))]


def hidden_projection(student: int, teacher: int, seed: int) -> nn.Linear | None:
    """A projection between hidden widths, thrown away after training; None if they are equal.

    It begins orthogonal: what is near in the student's space is near in the teacher's.
    """
    if student == teacher:
        return None
    projection = nn.Linear(student, teacher, bias=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        nn.init.orthogonal_(projection.weight)
    return projection
