"""Every sample on every target: the verdicts and the figures, as a Markdown table.

    python benchmarks/matrix.py [--out dist] [--samples code_lm digits ...] [--targets mobile ...]

Latency is the ratio to the float32 original on this machine, timed in turns, with its interval.
Instructions are the same ratio on the target's emulated CPU, and board is the smallest memory of a
whole emulated board, where the profile lists one and it is installed (make devices).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from rich.console import Console

import exporter
from exporter.display import progress_for
from exporter.judge.verdict import Judgement

SAMPLES = {
    "code_lm": ["code_lm"],
    "code_lm-base": ["code_lm", "--size", "base"],
    "docstring_classifier": ["docstring_classifier"],
    "digits": ["digits"],
}


def main() -> None:
    """Run the matrix and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("dist"))
    parser.add_argument("--samples", nargs="+", choices=SAMPLES, default=list(SAMPLES))
    parser.add_argument("--targets", nargs="+", default=exporter.target_names())
    options = parser.parse_args()
    progress = progress_for(Console(stderr=True))
    rows = []
    for sample in options.samples:
        trained = subprocess.run(
            [sys.executable, "-m", "sample_models", *SAMPLES[sample]],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        directory = Path(trained.stdout.strip())
        for target in options.targets:
            progress.note(f"{sample} for {target}")
            result = exporter.export(
                directory / "model",
                data=directory / "data",
                target=target,
                out=options.out / f"{sample}-{target}",
                progress=progress,
            )
            rows.append(_row(sample, target, result))
    head = "sample target verdict ships quality latency instructions size memory board".split()
    print(f"| {' | '.join(head)} |")
    print("|---" * len(head) + "|")
    print("\n".join(rows))


def _row(sample: str, target: str, result: exporter.Result) -> str:
    by_metric = {j.metric: j for j in result.judgements}
    quality = next(
        by_metric[m] for m in ("perplexity_ratio", "accuracy_drop_points") if m in by_metric
    )
    sign = "×" if quality.metric == "perplexity_ratio" else " points"
    latency, size = by_metric["latency_ratio"], by_metric["disk_size_ratio"]
    memory = by_metric["peak_memory_mib"]
    chosen = next(c.name for c in result.report.candidates if c.status == "chosen")
    cells = [
        sample,
        target,
        result.verdict,
        chosen,
        f"{quality.measured:.3f}{sign} (≤ {quality.high:.3f}, {quality.limit:g} allowed)",
        f"{latency.measured:.3f}× ({latency.low:.3f}–{latency.high:.3f})",
        _device(by_metric.get("instruction_ratio"), "{:.3f}×"),
        f"{size.measured:.3f}×",
        f"{memory.candidate:.0f} MiB ({memory.reference:.0f})",
        _device(by_metric.get("board_memory_mib"), "{:.0f} MiB"),
    ]
    return f"| {' | '.join(cells)} |"


def _device(judgement: Judgement | None, form: str) -> str:
    told = judgement is not None and judgement.measured is not None
    return form.format(judgement.measured) if told else "–"


if __name__ == "__main__":
    main()
