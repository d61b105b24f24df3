"""docstring_classifier with a third of its multiply-accumulates, pruned and distilled, unquantized.

    python benchmarks/third.py [--steps 1200] [--layers 0.3333 --ffn 0.75] [--out dist/third]

Four of six layers and a quarter of the feed-forward units are a third of the work. The reference
is trained as long as the candidate; where that made it better, the candidate is judged against it
and has it as its teacher. Prints the share of the work, the difference in accuracy on test data
with its one-sided 95 % bound, and the latency at sequence 128 on one thread, timed in turns.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console

import exporter
from exporter.display import progress_for

TARGET = {
    "name": "third",
    "description": "float32 on one thread of an x86-64 server",
    "isa": "x86-64",
    "features": ["avx2"],
    "threads": 1,
    "memory_mib": 2048,
    "runtime": "onnxruntime",
    "format": "onnx",
    "workload": {"batch": 1, "sequence_length": 128, "prompt_length": 128, "decode_tokens": 16},
    "evidence": {"confidence": 0.95, "latency_rounds": 60},
    "budgets": {"accuracy_drop_points": 0.5, "latency_ratio": round(1 / 2.7, 4)},
}


def main() -> None:
    """Train the sample if it is not there, export it, print what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--layers", type=float, default=0.3333)
    parser.add_argument("--ffn", type=float, default=0.75)
    parser.add_argument("--criterion", default="wanda")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--distill-weight", type=float, default=0.7)
    parser.add_argument("--largest-cut", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=Path("dist/third"))
    parser.add_argument("--sample", type=Path, help="the sample's directory, if it is trained")
    options = parser.parse_args()
    directory: Path = options.sample or _trained()
    candidate = {
        "name": "third",
        "tasks": ["text-classification"],
        "quantization": "none",
        "pruning": {
            "layers": options.layers,
            "ffn": options.ffn,
            "criterion": options.criterion,
            "examples": 256,
        },
        "fine_tune": {
            "steps": options.steps,
            "batch_size": 32,
            "learning_rate": options.learning_rate,
            "distill_weight": options.distill_weight,
            "temperature": 2.0,
            "evaluate_every": max(1, options.steps // 6),
            "patience": 6,
            "largest_cut": options.largest_cut,
        },
    }
    result = exporter.export(
        directory / "model",
        data=directory / "data",
        target=exporter.Target.model_validate(
            TARGET | {"recipe": {"seed": 0, "candidates": [candidate]}}
        ),
        out=options.out,
        progress=progress_for(Console(stderr=True)),
    )
    print(result.verdict)
    for judgement in result.judgements:
        print(json.dumps(judgement.to_json()))
    print(json.dumps(json.loads((result.directory / "report.json").read_text())["candidates"]))


def _trained() -> Path:
    """The sample's directory; it is trained if it is not there."""
    made = subprocess.run(
        [sys.executable, "-m", "sample_models", "docstring_classifier"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Path(made.stdout.strip())


if __name__ == "__main__":
    main()
