"""One training loop for all samples: fixed steps, resumable, the same result when resumed."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.progress import Progress

if TYPE_CHECKING:
    import torch


def bf16_pays() -> bool:
    """Whether bfloat16 arithmetic is faster than float32 on this CPU.

    AMX and AMD's AVX512-BF16 are; Intel's AVX512-BF16 without AMX runs at half rate and
    loses to float32 (measured 1.6 times slower on a 384-wide encoder).
    """
    try:
        facts = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    flags = set(facts.partition("flags")[2].partition("\n")[0].split())
    return "amx_bf16" in flags or ("avx512_bf16" in flags and "AuthenticAMD" in facts)


def train(
    module: torch.nn.Module,
    loss_of: Callable[[int], torch.Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    *,
    name: str,
    steps: int,
    scratch: Path,
    progress: Progress,
    warmup: float = 0.05,
    save_every: int = 200,
) -> None:
    """Train `module` in place for `steps` steps, each with the loss `loss_of(step)`.

    The learning rate rises linearly over the share `warmup` of the steps and falls to zero
    as a cosine. The state is saved to `scratch` every `save_every` steps; a call that finds
    one there goes on from it. `loss_of` must depend on nothing but the step and the module;
    torch's generator is seeded with the step (dropout).
    """
    import torch

    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    saved = scratch / "training.pt"
    begin = _restore(saved, module, optimizers) if saved.exists() else 0
    if begin:
        progress.note(f"{name}: goes on from step {begin}")
    rising = max(1, round(warmup * steps))
    bf16 = bf16_pays()
    module.train()
    total, counted = 0.0, 0
    with progress.stage(name, steps) as bar:
        bar.advance(begin)
        for step in range(begin, steps):
            falling = 0.5 * (1 + math.cos(math.pi * max(0, step - rising) / (steps - rising)))
            factor = min((step + 1) / rising, falling) if step < rising else falling
            for optimizer, lrs in zip(optimizers, rates, strict=True):
                for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                    group["lr"] = lr * factor
            torch.manual_seed(step)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                loss = loss_of(step)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            total, counted = total + loss.item(), counted + 1
            if (step + 1) % max(1, steps // 8) == 0:
                progress.note(f"{name}: step {step + 1}, training loss {total / counted:.3f}")
                total, counted = 0.0, 0
            if (step + 1) % save_every == 0 and step + 1 < steps:
                _save(saved, step + 1, module, optimizers)
            bar.advance()
    module.eval()


def _save(
    path: Path, step: int, module: torch.nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> None:
    import torch

    state: dict[str, Any] = {
        "step": step,
        "module": module.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    beside = path.with_suffix(".new")
    torch.save(state, beside)
    os.replace(beside, path)


def _restore(
    path: Path, module: torch.nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> int:
    import torch

    state = torch.load(path, weights_only=True)
    module.load_state_dict(state["module"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"])
