"""Zeros at once against zeros that rise while the student learns: quality and download, a table.

    python benchmarks/sparsity.py CHECKPOINT DATA [--shares 0.5 0.7] [--steps 200] [--examples 1000]

Each student is distilled from the original for the same number of steps (or not at all), and the
original is trained for as many: what it gains is no merit of zeros. Quality is on test data against
the original, with a 95 % interval over pairs; the download is the float32 graph and an int8 one
after zstd, as a share of the original float32 graph's.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from exporter.compress.finetune import fine_tune
from exporter.compress.prune import prune
from exporter.compress.sparsity import sparsity_of
from exporter.compress.sparsity_schedule import sparsity_hook
from exporter.display import progress_for
from exporter.graph.export import export_model
from exporter.graph.model import OnnxModel
from exporter.judge.size import measure_size
from exporter.judge.statistics import paired_difference, ratio_bounds
from exporter.models.examples import Examples
from exporter.models.load import LoadedModule, load_module, load_preprocessor
from exporter.models.runner import torch_run
from exporter.models.scores import Scores
from exporter.models.source import resolve_source
from exporter.models.splits import make_splits
from exporter.models.tasks import get_task
from exporter.quantize import QuantizeOptions, get_scheme
from exporter.recipe import FineTune, Pruning


def main() -> None:
    """Train every student and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("data")
    parser.add_argument("--shares", nargs="*", type=float, default=[0.5, 0.7])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--criterion", default="magnitude")
    parser.add_argument("--examples", type=int, default=1000, help="test examples at most")
    options = parser.parse_args()

    source = resolve_source(options.checkpoint, task=None)
    task = get_task(source.task)
    splits = make_splits(options.data, task)
    preprocessor = load_preprocessor(source)

    def prepared(split: Any, limit: int | None) -> Examples[Any]:
        return task.prepare(split, preprocessor, source.config, max_length=512, limit=limit)

    train = prepared(splits.train, options.steps * options.batch_size)
    development = prepared(splits.development, 256)
    calibration = prepared(splits.calibration, None)
    test = prepared(splits.test, options.examples)
    progress = progress_for(Console(stderr=True))
    tune = FineTune(
        steps=options.steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        evaluate_every=max(1, options.steps // 5),
        patience=5,
    )

    def original() -> Any:
        return load_module(source).module

    def taught(student: Any, hooks: Any = (), teacher: Any = original) -> Any:
        with tempfile.TemporaryDirectory() as scratch:
            return fine_tune(
                student,
                teacher(),
                task,
                train,
                development,
                tune,
                seed=0,
                scratch=Path(scratch),
                hooks=hooks,
                progress=progress,
            ).module

    def at_once(share: float) -> Any:
        pruning = Pruning(sparsity=share, criterion=options.criterion)
        return prune(original(), task, train, pruning, progress=progress).module

    def rising(share: float) -> Any:
        student = original()
        pruning = Pruning(sparsity=share, criterion=options.criterion, sparsity_schedule="cubic")
        return taught(student, [sparsity_hook(student, task, train, pruning)])

    def sizes(module: Any) -> tuple[int, int]:
        with tempfile.TemporaryDirectory() as folder:
            module.save_pretrained(Path(folder) / "checkpoint")
            graph = export_model(
                LoadedModule(module, preprocessor, None),
                task=task,
                config=source.config,
                checkpoint=Path(folder) / "checkpoint",
                out=Path(folder) / "float",
            )
            small = _int8(graph, Path(folder) / "int8", task.name, calibration)
            return measure_size(graph).download_bytes, measure_size(small).download_bytes

    def scored(module: Any) -> Scores:
        return task.score(torch_run(module.eval()), test)

    before = scored(original())
    whole, _ = sizes(original())
    makers: list[tuple[str, Callable[[], Any]]] = [
        ("original", original),
        ("original, trained as long", lambda: taught(original(), teacher=lambda: None)),
    ]
    for share in options.shares:
        told = f"{100 * share:g} %"
        makers += [
            (f"{told} at once, no recovery", lambda share=share: at_once(share)),
            (f"{told} at once, recovered", lambda share=share: taught(at_once(share))),
            (f"{told} rising, recovered", lambda share=share: rising(share)),
        ]
    print(f"{options.checkpoint}: {task.name}, {len(test)} test examples, {options.steps} steps")
    print("| student | zeros | quality | float32 download | int8 download |\n|---|---|---|---|---|")
    for name, make in makers:
        module = make()
        large, small = sizes(module)
        print(
            f"| {name} | {100 * sparsity_of(module):.0f} % | {_quality(before, scored(module))} "
            f"| {large / whole:.3f} | {small / whole:.3f} |",
            flush=True,
        )


def _int8(graph: OnnxModel, out: Path, task: str, calibration: Examples[Any]) -> OnnxModel:
    for name in ("dynamic-int8", "static-int8"):
        scheme = get_scheme(name)
        if scheme.applies(graph, task) is None:
            return scheme.quantize(graph, out, QuantizeOptions(calibration)).model
    raise SystemExit("no int8 scheme applies")


def _quality(before: Scores, after: Scores) -> str:
    """The perplexity's ratio, or the accuracy's drop in points, with its interval."""
    if "tokens" in before.values:
        found = ratio_bounds(
            after.values["nll"] - before.values["nll"],
            before.values["tokens"],
            confidence=0.975,
            resamples=5000,
            seed=0,
        )
        ratio, low, high = map(math.exp, found)
        return f"perplexity ×{ratio:.3f} [{low:.3f}, {high:.3f}]"
    was, now = before.values["correct"], after.values["correct"]
    lost, gained = int(((was == 1) & (now == 0)).sum()), int(((was == 0) & (now == 1)).sum())
    lows, highs = paired_difference(lost, gained, len(was), 0.975)
    return (
        f"accuracy {100 * float(np.mean(now)):.2f} %, "
        f"drop {100 * (lost - gained) / len(was):.2f} points "
        f"[{100 * float(lows):.2f}, {100 * float(highs):.2f}]"
    )


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
