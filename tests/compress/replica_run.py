"""What `test_replicas` starts under torchrun: tiny runs whose ends every process writes down."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from exporter.compress import training
from exporter.compress.finetune import fine_tune
from exporter.compress.prune import prune
from exporter.models.examples import Development, Train
from exporter.models.tasks import get_task
from exporter.recipe import FineTune, Pruning
from tests.compress.conftest import TASK_OF, Tiny

FAMILIES = ("bert-encoder", "qwen3", "mobilenetv2")
OPTIONS: dict[str, Any] = {
    "steps": 8,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "evaluate_every": 4,
    "mixed_precision": "no",
}


def tuned(tiny: Tiny, scratch: Path, **changes: Any) -> Any:
    """A pruned student trained towards the original; convolutions as they are."""
    student = tiny.module()
    if tiny.family != "mobilenetv2":
        halved = Pruning(ffn=0.5, criterion="magnitude")
        student = prune(student, tiny.task, tiny.examples(Train), halved).module
    return fine_tune(
        student,
        tiny.module(),
        tiny.task,
        tiny.examples(Train, 44, seed=1),
        tiny.examples(Development, 20, seed=2),
        FineTune(**{**OPTIONS, **changes}),
        seed=0,
        scratch=scratch,
    )


def _stopped(tiny: Tiny, scratch: Path) -> None:
    """Stop every process in step 7, as Ctrl-C would."""
    real = training.schedule

    def stopping(step: int, steps: int) -> float:
        if step == 7:
            raise KeyboardInterrupt
        return real(step, steps)

    training.schedule = stopping  # type: ignore[assignment]
    try:
        tuned(tiny, scratch)
    except KeyboardInterrupt:
        pass
    finally:
        training.schedule = real


def main(checkpoints: Path, out: Path) -> None:
    """Train each family; scratch directories differ by process, to see who writes."""
    rank = os.environ["RANK"]
    seen: list[list[int]] = []
    real = training.parts

    def spying(*arguments: Any, **named: Any) -> Any:
        found = real(*arguments, **named)
        seen.append([index for indices, _ in found for index in indices])
        return found

    training.parts = spying  # type: ignore[assignment]
    for family in FAMILIES:
        tiny = Tiny(family, checkpoints / family, get_task(TASK_OF[family]))
        seen.clear()
        result = tuned(tiny, out / f"scratch-{family}-{rank}", accumulate=2)
        facts = {"seen": seen, "history": result.history}
        (out / f"{family}-{rank}.json").write_text(json.dumps(facts))
        torch.save(result.module.state_dict(), out / f"{family}-{rank}.pt")
    tiny = Tiny("qwen3", checkpoints / "qwen3", get_task(TASK_OF["qwen3"]))
    straight = tuned(tiny, out / f"straight-{rank}", hidden_weight=1.0)
    _stopped(tiny, out / f"stopped-{rank}")
    seen.clear()
    resumed = tuned(tiny, out / f"stopped-{rank}")
    torch.save(resumed.module.state_dict(), out / f"resumed-{rank}.pt")
    (out / f"resumed-{rank}.json").write_text(json.dumps({"steps": len(seen)}))
    torch.save(tuned(tiny, out / f"again-{rank}").module.state_dict(), out / f"again-{rank}.pt")
    torch.save(straight.module.state_dict(), out / f"hidden-{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
