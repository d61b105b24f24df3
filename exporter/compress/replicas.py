"""Replicas: the processes that train one student together, joined by Accelerate.

Started by `torchrun`, on one machine or several, each process holds a replica and takes its part
of every batch; started plainly there is one. Which part is whose follows from the batch alone,
and parts are weighted by what their losses average over, so that any number of processes and of
accumulated parts takes the same steps, but for the order of sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list, gather_object
from torch import nn

from exporter.errors import DataError
from exporter.models.examples import Examples, Train
from exporter.models.tasks import Task


def join() -> Accelerator:
    """The processes that `torchrun` started, or this one alone; on CUDA where there is a device.

    Buffers are not sent around at each step: `average_buffers` settles them before they matter.
    """
    ddp = DistributedDataParallelKwargs(
        broadcast_buffers=False,
        find_unused_parameters=True,  # such as the pooler of a bare encoder
    )
    return Accelerator(
        cpu=not torch.cuda.is_available(), mixed_precision="no", kwargs_handlers=[ddp]
    )


@dataclass(frozen=True)
class Share:
    """What a part of a batch counts in the loss of the whole batch.

    Attributes:
        own, distilled, feeds: the part's share of what the task's loss, the distillation loss
            and a mean over feeds average over, times the number of processes: gradients are
            averaged over them.
    """

    own: float
    distilled: float
    feeds: float


def parts(
    chosen: Sequence[int],
    examples: Examples[Train],
    task: Task,
    *,
    process: int,
    processes: int,
    accumulate: int,
) -> list[tuple[list[int], Share]]:
    """This process's parts of a batch of feed indices, in the order they are accumulated.

    Feeds of a batch are alike in length; every so-manieth goes to one part.
    """
    terms = [task.loss_terms(examples.feeds[i]) for i in chosen]
    own, distilled = (sum(column) for column in zip(*terms, strict=True))
    stride = processes * accumulate
    found = []
    for k in range(accumulate):
        first = process * accumulate + k
        ours = terms[first::stride]
        share = Share(
            processes * (sum(o for o, _ in ours) / own) if own else 0.0,
            processes * (sum(d for _, d in ours) / distilled) if distilled else 0.0,
            processes * (len(ours) / len(chosen)),
        )
        found.append((list(chosen[first::stride]), share))
    return found


def check_parts(
    examples: Examples[Train], batch_size: int, *, processes: int, accumulate: int
) -> None:
    """Refuse a batch that leaves a part without an example.

    Raises:
        DataError: fewer examples a batch than processes times accumulated parts.
    """
    least = min(batch_size, len(examples.feeds))
    if least < processes * accumulate:
        raise DataError(
            "fine_tune.batch_size" if least == batch_size else "the train split",
            f"must hold an example for each of {processes} processes × {accumulate} accumulated "
            "parts",
            got=least,
            remedy="make batches larger, or start fewer processes.",
        )


def from_first(accelerator: Accelerator, value: Any) -> Any:
    """What the first process holds, on every process; its files need not be everywhere."""
    return broadcast_object_list([value])[0] if accelerator.num_processes > 1 else value


def from_all(accelerator: Accelerator, value: Any) -> list[Any]:
    """What each process holds, in their order."""
    found: list[Any] = gather_object([value]) if accelerator.num_processes > 1 else [value]
    return found


def average_buffers(accelerator: Accelerator, module: nn.Module) -> None:
    """Give every replica the mean of their running statistics.

    A running mean is linear in what it saw: the mean at the end is the mean of every step.
    """
    if accelerator.num_processes > 1:
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer.copy_(accelerator.reduce(buffer, "mean"))


def random_state() -> list[torch.Tensor]:
    """The state of this process's random numbers: the CPU's, then each CUDA device's."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return [torch.get_rng_state(), *cuda]


def restore_random(state: Sequence[torch.Tensor]) -> None:
    """Go on from what `random_state` told."""
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state_all(list(state[1:]))
