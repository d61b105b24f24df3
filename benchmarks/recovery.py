"""One cut recovered in several ways, as a Markdown table: what each is worth at equal steps.

    python benchmarks/recovery.py MODEL --data DATA [--ffn 0.6 --heads 0 --layers 0] [--steps 120]

MODEL is a checkpoint. The loss is the task's on development data; the gap is what it has beyond
the original's, with its one-sided 95 % bound. Every way takes the same steps, the trials of
`auto` aside.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from exporter.attempts import DEVELOPMENT_EXAMPLES
from exporter.cache import Cache
from exporter.compress.rounds import body_parameters
from exporter.display import progress_for
from exporter.models.load import load_checkpoint
from exporter.models.source import resolve_source
from exporter.models.splits import make_splits
from exporter.models.tasks import get_task
from exporter.recipe import Candidate, Recipe
from exporter.rounds import recovered
from exporter.stages import Context, prepare
from exporter.target import load_target

AT_ONCE = {"largest_cut": 1.0}
WAYS: dict[str, dict[str, Any]] = {
    "distil alone": {**AT_ONCE, "distill_weight": 1.0},
    "with the task's loss": {**AT_ONCE, "distill_weight": 0.5},
    "the task's loss alone": {**AT_ONCE, "distill_weight": 0.0},
    "tried (auto)": {**AT_ONCE, "distill_weight": "auto"},
    "with hidden states": {**AT_ONCE, "distill_weight": 1.0, "hidden_weight": 1.0},
    "in rounds": {"distill_weight": 1.0},
    "adapters of rank 16": {**AT_ONCE, "distill_weight": 1.0, "rank": 16, "learning_rate": 5e-3},
}


def main() -> None:
    """Recover in each way and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    for part in ("ffn", "heads", "layers"):
        parser.add_argument(f"--{part}", type=float, default=0.6 if part == "ffn" else 0.0)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    options = parser.parse_args()
    source = resolve_source(options.model, task=None)
    pruning = {"ffn": options.ffn, "heads": options.heads, "layers": options.layers}
    print("| way | share removed | rounds | loss before | after | gap | at most | s |")
    print("|---" * 8 + "|")
    with tempfile.TemporaryDirectory() as cache:
        context = Context(
            source,
            get_task(source.task),
            load_target("mobile"),
            Recipe.model_validate({"candidates": [{"name": "none"}]}),
            Cache(Path(cache)),
            progress_for(Console(stderr=True)),
            devices=False,
        )
        splits = make_splits(options.data, context.task, label_names=source.config.get("label2id"))
        train = prepare(context, splits.train, options.steps * options.batch_size)
        development = prepare(context, splits.development, DEVELOPMENT_EXAMPLES)
        before = body_parameters(load_checkpoint(Path(options.model), source.task))
        for way in options.ways:
            tune = {
                "steps": options.steps,
                "batch_size": options.batch_size,
                "learning_rate": options.learning_rate,
                "evaluate_every": max(1, options.steps // 4),
                **WAYS[way],
            }
            candidate = Candidate.model_validate(
                {"name": "cut", "pruning": pruning, "fine_tune": tune}
            )
            started = time.monotonic()
            done = recovered(context, candidate, lambda: None, train, development)
            took = time.monotonic() - started
            assert done.checkpoint is not None
            assert done.recovery is not None
            after = body_parameters(load_checkpoint(done.checkpoint.directory, source.task))
            history, best = done.recovery["history"], done.recovery["best_step"]
            look = next(entry for entry in reversed(history) if entry["step"] == best)
            rounds = (done.removed or {}).get("rounds", 1)
            print(
                f"| {way} | {1 - after / before:.1%} | {rounds} "
                f"| {history[0]['development_loss']:.4f} | {look['development_loss']:.4f} "
                f"| {look['gap']:+.4f} | {look['gap_high']:+.4f} | {took:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
