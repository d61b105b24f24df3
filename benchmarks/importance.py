"""Which criterion foretells ablation, and how long each takes: a Markdown table.

    python benchmarks/importance.py [MODEL --data DATA] [--examples 128] [--ablate 64] [--only ffn]

By default the sample docstring_classifier, trained first if it is not there. The cheap criteria are
to score the whole model within a minute, ablation all its heads and layers within ten; a machine
that is busy with something else takes longer, which the load beside the times tells.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

import exporter
from exporter.display import progress_for
from exporter.progress import Bar, Progress


class Timed:
    """Passes stages on to another progress and keeps how long each took, in seconds."""

    def __init__(self, shown: Progress) -> None:
        self.shown = shown
        self.seconds: dict[str, float] = {}

    def note(self, text: str) -> None:
        self.shown.note(text)

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Bar]:
        started = time.monotonic()
        with self.shown.stage(name, total) as bar:
            yield bar
        self.seconds[name] = time.monotonic() - started


def main() -> None:
    """Score one model afresh, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--examples", type=int, default=128)
    parser.add_argument("--ablate", type=int, help="units of a kind; default: see the command")
    parser.add_argument("--only", nargs="+", default=(), help="kinds of units")
    options = parser.parse_args()
    model, data = options.model, options.data
    if model is None:
        command = [sys.executable, "-m", "sample_models", "docstring_classifier"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        model, data = (Path(done.stdout.strip()) / name for name in ("model", "data"))
    timed = Timed(progress_for(Console(stderr=True)))
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as cache:
        report = exporter.importance(
            model,
            data=data,
            examples=options.examples,
            ablate=options.ablate,
            granularities=options.only,
            cache=Path(cache),
            progress=timed,
        )
    took = time.monotonic() - started
    ablation = sum(s for name, s in timed.seconds.items() if name.endswith(": ablate"))
    must = sum(timed.seconds.get(f"{kind}: ablate", 0.0) for kind in ("head", "layer"))
    before = sum(timed.seconds[n] for n in ("read and split the data", "prepare train data"))
    cheap = took - ablation - before
    print(f"{report.feeds} feeds, {os.cpu_count()} cores, load {os.getloadavg()[1]:.1f}")
    print(f"cheap criteria: {cheap:.0f} s; ablation of all heads and layers: {must:.0f} s")
    print(f"ablation in all: {ablation:.0f} s; reading and preparing data: {before:.0f} s\n")
    print(f"| Spearman with ablation | {' | '.join(kind.kind for kind in report.kinds)} |")
    print("|---" * (1 + len(report.kinds)) + "|")
    for criterion in report.criteria():
        if criterion == "ablation":
            continue
        told = [kind.spearman.get(criterion) for kind in report.kinds]
        cells = ["–" if value is None else f"{value:+.2f}" for value in told]
        print(f"| {criterion} | {' | '.join(cells)} |")
    counts = [sum(change is not None for change in kind.loss_change) for kind in report.kinds]
    print(f"| units ablated | {' | '.join(map(str, counts))} |")


if __name__ == "__main__":
    main()
