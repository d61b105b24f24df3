"""Training: one run of optimizer steps, from the student as it is to what it was at its best."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from exporter.compress.batching import training_order
from exporter.compress.history import FineTuneResult, entry_of, refuse_unsound, result_of
from exporter.compress.hooks import Hook
from exporter.compress.looks import Look, Looking
from exporter.compress.low_rank import add_adapters, merge_adapters
from exporter.compress.matching import check_layers, hidden_width, layer_count
from exporter.compress.replicas import (
    average_buffers,
    from_all,
    from_first,
    parts,
    random_state,
    restore_random,
)
from exporter.compress.resume import load_checkpoint, save_checkpoint
from exporter.compress.sparsity import zero_masks
from exporter.compress.steps import (
    keep_zeros,
    learned_state,
    load_learned,
    optimizer_of,
    schedule,
    set_training,
    wants_bfloat16,
)
from exporter.compress.teaching import Answering, Learner, hidden_pairs, hidden_projection
from exporter.errors import ModelError
from exporter.models.examples import Development, Examples, Train
from exporter.models.tasks import Task
from exporter.progress import Progress
from exporter.recipe import FineTune

CLIP = 1.0


@dataclass(frozen=True)
class Training:
    """What a student is trained with; trials and the training itself share it.

    Attributes:
        accelerator: the processes that train together.
        teacher: None trains on the task's loss alone.
        layers: for each of the student's layers, the teacher's that it came from; None spreads
            them evenly.
        hooks: what shapes the student meanwhile.
    """

    accelerator: Accelerator
    teacher: nn.Module | None
    task: Task
    examples: Examples[Train]
    development: Examples[Development]
    layers: Sequence[int] | None
    seed: int
    hooks: Sequence[Hook] = ()

    def run(
        self, student: nn.Module, options: FineTune, scratch: Path, progress: Progress
    ) -> FineTuneResult:
        """Train `student` in place with a fixed weight of distillation."""
        accelerator, teacher = self.accelerator, self.teacher
        identity = self._identity(student, options)
        masks = zero_masks(student)
        if options.rank is not None:
            add_adapters(student, options.rank, masks, seed=self.seed)
            masks = {}  # the adapters hold them
        masks = {name: zeros.to(accelerator.device) for name, zeros in masks.items()}
        learner = self._learner(student, options)
        optimizer = optimizer_of(learner)
        looking = Looking(
            accelerator, self.task, self.development, options.batch_size, learner.teaching
        )
        replica, optimizer = accelerator.prepare(learner, optimizer)

        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(self.seed + accelerator.process_index)
            state = load_checkpoint(scratch, identity) if accelerator.is_main_process else None
            state = from_first(accelerator, state)
            if state is not None:
                self._go_on(state, learner, optimizer)
            else:
                first = looking(learner.answering)
                if first is None:
                    progress.note(
                        "fine-tuning skipped: the data has no labels and there is no teacher"
                    )
                    self._hand_back(student)
                    return FineTuneResult(student.eval(), [], 0, None)
                refuse_unsound(first)
                state = self._begun(first, student, options)

            start = int(state["step"])
            with progress.stage("fine-tune", options.steps) as bar:
                bar.advance(start)
                losses: list[Tensor] = []
                order = islice(
                    training_order(self.examples, options.batch_size, self.seed), start, None
                )
                for step in range(start + 1, options.steps + 1):
                    if state["finished"]:
                        break
                    set_training(student, dropout=teacher is None)
                    for hook in self.hooks:
                        hook.before_step(step, options.steps, student)
                    for group in optimizer.param_groups:
                        group["lr"] = options.learning_rate * schedule(step, options.steps)
                    optimizer.zero_grad(set_to_none=True)
                    loss = self._backward(replica, next(order), options)
                    keep_zeros(student, masks)
                    for hook in self.hooks:
                        hook.before_update(student)
                    norm = nn.utils.clip_grad_norm_(learner.parameters(), CLIP)
                    if not (torch.isfinite(loss) and torch.isfinite(norm)):
                        progress.note(f"fine-tuning stopped: loss is not finite at step {step}")
                        break
                    optimizer.step()
                    for hook in self.hooks:
                        hook.after_step(student)
                    losses.append(loss)
                    if step % options.evaluate_every == 0 or step == options.steps:
                        average_buffers(accelerator, student)
                        found = looking(learner.answering)
                        assert found is not None
                        trained = sum(map(float, losses)) / len(losses)
                        losses.clear()
                        state["history"].append(entry_of(step, trained, found))
                        self._weigh(state, step, found, student, options)
                        state |= {
                            "step": step,
                            "model": learned_state(learner),
                            "optimizer": optimizer.state_dict(),
                            "random": from_all(accelerator, random_state()),
                            "hooks": [hook.state() for hook in self.hooks],
                        }
                        if accelerator.is_main_process:
                            save_checkpoint(scratch, identity, state)
                    bar.advance()
        load_learned(student, state["best"])
        self._hand_back(student)
        return result_of(student, state)

    def _begun(self, first: Look, student: nn.Module, options: FineTune) -> dict[str, Any]:
        """The state of a run that has not taken a step."""
        settled = self._settled(0, options)
        return {
            "step": 0,
            "history": [entry_of(0, None, first)],
            "best": learned_state(student),
            "best_step": 0,
            "best_score": first.score if settled else math.inf,
            "stale": 0,
            "finished": settled and _close_enough(first, options),
        }

    def _go_on(self, state: dict[str, Any], learner: Learner, optimizer: Any) -> None:
        """Put everything that learns back to where a stopped run was."""
        load_learned(learner, state["model"])
        optimizer.load_state_dict(state["optimizer"])
        restore_random(state["random"][self.accelerator.process_index])
        for hook, told in zip(self.hooks, state["hooks"], strict=True):
            hook.restore(told)

    def _weigh(
        self, state: dict[str, Any], step: int, found: Look, student: nn.Module, options: FineTune
    ) -> None:
        """Keep the student if it is the best so far; note whether to stop."""
        settled = self._settled(step, options)
        if settled and found.score < state["best_score"]:
            state |= {"best": learned_state(student), "best_score": found.score}
            state |= {"best_step": step, "stale": 0}
        elif settled:  # before that it is not yet what was asked for, however good
            state["stale"] += 1
        close = settled and _close_enough(found, options)
        state["finished"] = state["stale"] >= options.patience or close

    def _hand_back(self, student: nn.Module) -> None:
        """Leave both modules as ordinary ones, in main memory."""
        merge_adapters(student)
        for module in (student, self.teacher):
            if module is not None:
                module.to("cpu")

    def _settled(self, step: int, options: FineTune) -> bool:
        return all(hook.settled(step, options.steps) for hook in self.hooks)

    def _learner(self, student: nn.Module, options: FineTune) -> Learner:
        """The student beside its teacher, on this process's device."""
        device = self.accelerator.device
        teacher = self.teacher
        pairs: list[tuple[int, int]] = []
        projection = None
        if teacher is not None and options.hidden_weight:
            ours, theirs = layer_count(student), layer_count(teacher)
            widths = hidden_width(student), hidden_width(teacher)
            if ours is None or theirs is None or widths[0] is None or widths[1] is None:
                raise ModelError(
                    "fine_tune.hidden_weight",
                    "needs a config that tells num_hidden_layers and hidden_size",
                    remedy="set it to 0.",
                )
            if self.layers is not None:
                check_layers(tuple(self.layers), ours, theirs)
            pairs = hidden_pairs(ours, theirs, self.layers)
            projection = hidden_projection(widths[0], widths[1], self.seed)
        assert options.distill_weight != "auto" or teacher is None
        weight = 0.0 if options.distill_weight == "auto" else options.distill_weight
        learner = Learner(
            self._answering(student.to(device), options),
            None if teacher is None else self._answering(teacher.to(device).eval(), options),
            self.task,
            distill_weight=weight,
            temperature=options.temperature,
            hidden_weight=options.hidden_weight,
            layers=pairs,
            projection=projection,
        )
        return learner.to(device)

    def _answering(self, module: nn.Module, options: FineTune) -> Answering:
        half = options.mixed_precision == "bfloat16"
        if options.mixed_precision == "auto":
            # Processes on unlike machines must do the same arithmetic.
            half = all(
                from_all(self.accelerator, wants_bfloat16(module, self.accelerator.device.type))
            )
        return Answering(module, self.accelerator.device, half=half)

    def _backward(self, replica: nn.Module, chosen: list[int], options: FineTune) -> Tensor:
        """Gradients of one batch, summed over its parts and averaged over processes; its loss."""
        accelerator = self.accelerator
        ours = parts(
            chosen,
            self.examples,
            self.task,
            process=accelerator.process_index,
            processes=accelerator.num_processes,
            accumulate=options.accumulate,
        )
        total = torch.zeros((), device=accelerator.device)
        for number, (indices, share) in enumerate(ours, 1):
            batch = next(self.examples.batches(len(indices), indices))
            if number < len(ours):
                with accelerator.no_sync(replica):
                    loss = replica(batch, share)
                    accelerator.backward(loss)
            else:
                loss = replica(batch, share)
                accelerator.backward(loss)
            total = total + loss.detach()
        reduced: Tensor = accelerator.reduce(total, "mean")
        return reduced

    def _identity(self, student: nn.Module, options: FineTune) -> str:
        """What a checkpoint belongs to: another run's must not be picked up."""
        processes = self.accelerator.num_processes
        told = (options.model_dump(), self.seed, processes, self.layers and list(self.layers))
        digest = hashlib.sha256(repr(told).encode())
        digest.update(repr([hook.identity for hook in self.hooks]).encode())
        data = (self.examples.ids, len(self.examples.feeds), self.development.ids)
        digest.update(repr(data).encode())
        for module in (student, self.teacher):
            for name, value in module.state_dict().items() if module is not None else ():
                digest.update(f"{name}{tuple(value.shape)}".encode())
                digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def _close_enough(look: Look, options: FineTune) -> bool:
    """Whether the student is shown to be as good as asked for: more steps are not needed."""
    return (
        options.stop_gap is not None
        and look.gap_high is not None
        and look.gap_high <= options.stop_gap
    )
