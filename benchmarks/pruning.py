"""How much can go: the largest structured cut within a perplexity margin, by part and criterion.

    python benchmarks/pruning.py [MODEL DATA] [--parts ffn hidden layers] [--criteria wanda fisher]

A language model; by default the larger sample code_lm, trained first if it is not there. A cut is
within a margin when the one-sided 95 % upper bound of its perplexity ratio is, document by document
against the original, as `exporter export` judges it. One-shot cuts, compensated by least squares,
are bisected; the best criterion of each part is also distilled at few cuts. Width and depth are
compared where they leave equal FLOPs. Choices are made on development data; the cuts chosen are
scored on test data, once. Results go to `--cache` line by line: a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pruning_cuts as cuts
from pruning_chart import draw
from pruning_cuts import PARTS, Bench, Row

LIMITS = (1.01, 1.05)


def main() -> None:
    """Measure what is not known yet, print the tables, draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--criteria", nargs="+", choices=cuts.CRITERIA, default=cuts.CRITERIA)
    parser.add_argument("--largest", type=float, default=0.75, help="share that bisection tries")
    parser.add_argument("--depths", type=int, default=2, help="layers that equal FLOPs go up to")
    parser.add_argument("--windows", type=int, default=4, help="of a document that are scored")
    parser.add_argument("--test-windows", type=int, default=2, help="the same on test data")
    parser.add_argument("--examples", type=int, default=32, help="windows that importance sees")
    parser.add_argument("--steps", type=int, default=60, help="of distillation; 0: none")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-test", action="store_true", help="leave test data alone")
    parser.add_argument("--cache", type=Path, default=Path("build/pruning"))
    parser.add_argument("--plot", type=Path, help="an SVG file")
    options = parser.parse_args()
    if options.model is not None and options.data is None:
        parser.error("MODEL needs DATA")
    if options.model is None:
        command = [sys.executable, "-m", "sample_models", "code_lm", "--size", "base"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        options.model, options.data = (Path(done.stdout.strip()) / n for n in ("model", "data"))

    bench = Bench(options)
    for part in options.parts:
        for criterion in bench.criteria(part):
            for limit in reversed(LIMITS):  # the wider first: it brackets the other
                bench.largest(part, criterion, limit)
    if options.depths:
        for part, level in bench.equal():
            for criterion in bench.criteria(part):
                bench.measure(part, criterion, level)
    if options.steps:
        for part in options.parts:
            _distil(bench, part)
    _print(bench, test=not options.no_test)
    if options.plot:
        options.plot.write_text(draw(bench.rows(), LIMITS), encoding="utf-8")


def _distil(bench: Bench, part: str) -> None:
    """The part's best criterion where one-shot cuts are beyond the narrowest margin, growing.

    Tried are the cuts that leave the FLOPs of whole layers less, and two beyond what goes in one
    shot within the widest margin; after the first that distillation cannot bring within it, none.
    """
    shot = [row for row in bench.rows() if row.part == part and not row.distilled]
    within = [row.level for row in shot if row.high <= max(LIMITS)]
    step = max(1, bench.levels(part) // 8)
    beyond = {max(within, default=0) + step * n for n in (1, 2)}
    equal = {level for other, level in bench.equal() if other == part}
    for level in sorted(equal | {n for n in beyond if n < bench.levels(part)}):
        criterion = bench.best(part, level)
        if bench.measure(part, criterion, level).high <= min(LIMITS):
            continue
        if bench.measure(part, criterion, level, distilled=True).high > max(LIMITS):
            return


def _print(bench: Bench, *, test: bool) -> None:
    print(f"| part | criterion | {' | '.join(f'within {limit:g}' for limit in LIMITS)} |")
    print("|---|---|" + "---|" * len(LIMITS))
    for distilled in (False, True):
        for part in bench.options.parts:
            found = [row for row in bench.rows() if (row.part, row.distilled) == (part, distilled)]
            for criterion in dict.fromkeys(row.criterion for row in found):
                mine = [row for row in found if row.criterion == criterion]
                told = " | ".join(_told(_most(mine, limit)) for limit in LIMITS)
                print(f"| {part} | {criterion}{', distilled' * distilled} | {told} |")
    print("\n| FLOPs left | part | one-shot | best by | distilled |\n|---|---|---|---|---|")
    for part, level in bench.equal():
        best = bench.measure(part, bench.best(part, level), level)
        taught = [r for r in bench.rows() if r.distilled and (r.part, r.level) == (part, level)]
        after = f"{taught[0].ratio:.3f} (≤ {taught[0].high:.3f})" if taught else "–"
        print(
            f"| {best.flops:.3f} | {part} {best.share:.3g} | {best.ratio:.3f} (≤ {best.high:.3f}) "
            f"| {best.criterion} | {after} |"
        )
    if not test:
        return
    print("\n| chosen within | cut | development | test |\n|---|---|---|---|")
    for limit in LIMITS:
        for distilled in (False, True):
            for part in bench.options.parts:
                same = (part, distilled)
                found = [row for row in bench.rows() if (row.part, row.distilled) == same]
                row = _most(found, limit)
                if row is None:
                    continue
                final = bench.final(row)
                print(
                    f"| {limit:g} | {part} {row.share:.3g}, {row.criterion}"
                    f"{', distilled' * distilled} | {row.ratio:.3f} (≤ {row.high:.3f}) "
                    f"| {final.ratio:.3f} (≤ {final.high:.3f}) |",
                    flush=True,
                )


def _most(rows: list[Row], limit: float) -> Row | None:
    """The largest cut that is shown to be within the margin, the better one of equals."""
    within = [row for row in rows if row.high <= limit]
    return max(within, key=lambda row: (row.level, -row.high), default=None)


def _told(row: Row | None) -> str:
    if row is None:
        return "none"
    return f"{row.share:.3g}, FLOPs {row.flops:.2f}, ×{row.ratio:.3f} (≤ {row.high:.3f})"


if __name__ == "__main__":
    main()
