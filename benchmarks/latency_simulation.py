"""How often does the latency gate err? Simulated with the gate's own code, and tried for real.

    python benchmarks/latency_simulation.py [--releases N] [--seed N]
    python benchmarks/latency_simulation.py --aa N

The first simulates releases whose true latency ratio is exactly the limit, under noise of several
kinds. A PASS and a FAIL are both wrong then, and each may happen to at most 1 − confidence, 5 %.
Beside it stands what a plain bootstrap over rounds, looked at as often, would do. A release that
is truly 10 % faster than the limit should be decided after few rounds.

The second measures a small model against itself N times, with a limit of 1, so that every look is
taken: the interval must contain 1.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exporter.judge.sequential import (
    LOOKS,
    OPENINGS,
    TRIM,
    log_ratio_bounds,
    look_confidence,
    next_look,
)
from exporter.judge.verdict import FAIL, PASS, decide
from exporter.target import Evidence

Floats = NDArray[np.float64]
Bounds = Callable[[Floats, float, list[int]], tuple[Floats, Floats]]

FIRST = Evidence().latency_rounds
CONFIDENCE = Evidence().confidence
BETTER = math.log(0.9)


def stretch(done: int, goal: int) -> list[int]:
    """Rounds of each opening on the way from `done` to `goal`, as the runner makes them."""
    size = -(-(goal - done) // OPENINGS)
    return [min(size, goal - start) for start in range(done, goal, size)]


def all_blocks(first: int) -> list[int]:
    """Rounds of each opening through all looks."""
    goals = [first * 2**look for look in range(LOOKS)]
    return [n for done, goal in zip([0, *goals], goals, strict=False) for n in stretch(done, goal)]


def ours(logs: Floats, confidence: float, blocks: list[int]) -> tuple[Floats, Floats]:
    """The gate's interval."""
    estimate, half = log_ratio_bounds(logs, confidence=confidence, blocks=blocks)
    return estimate - half, estimate + half


def bootstrap(logs: Floats, confidence: float, blocks: list[int]) -> tuple[Floats, Floats]:
    """Percentiles of the trimmed mean of resampled rounds, taken for independent."""
    rng = np.random.default_rng(0)
    count, cut = logs.shape[-1], int(logs.shape[-1] * TRIM)
    bounds = []
    for series in logs:
        drawn = np.sort(series[rng.integers(0, count, (400, count))], axis=1)
        means = drawn[:, cut : count - cut].mean(axis=1)
        bounds.append(np.quantile(means, [1 - confidence, confidence]))
    low, high = np.asarray(bounds).T
    return low, high


def decided(
    logs: Floats, first: int, *, bounds: Bounds = ours, confidence: float = CONFIDENCE
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What the stopping rule makes of each series, against a limit of 1.

    Args:
        logs: (releases, first × 2^(LOOKS − 1)) log ratios over the limit.

    Returns:
        (releases,) 1 for PASS, −1 for FAIL, 0 for INCONCLUSIVE; and (releases,) rounds taken.
    """
    verdicts = np.zeros(len(logs), np.int64)
    taken = np.zeros(len(logs), np.int64)
    blocks: list[int] = []
    done, look, goal = 0, 0, first
    while goal and (verdicts == 0).any():
        blocks += stretch(done, goal)
        done, look = goal, look + 1
        still = np.flatnonzero(verdicts == 0)
        taken[still] = done
        lows, highs = bounds(logs[still, :done], look_confidence(confidence, look), blocks)
        for place, low, high in zip(still, np.exp(lows), np.exp(highs), strict=True):
            verdicts[place] = {PASS: 1, FAIL: -1}.get(decide("below", 1.0, low, high), 0)
        goal = next_look(done, look) or 0
    return verdicts, taken


def autoregressive(shape: tuple[int, int], share: float, rng: np.random.Generator) -> Floats:
    """AR(1) with unit variance: each round keeps `share` of the one before."""
    series = rng.normal(size=shape)
    for i in range(1, shape[1]):
        series[:, i] = share * series[:, i - 1] + math.sqrt(1 - share**2) * series[:, i]
    return series


def bursts(shape: tuple[int, int], rng: np.random.Generator) -> Floats:
    """Other work for about 5 rounds at a time, on either model's runs, 15 % of the time."""
    on = np.empty((2, *shape), np.bool_)
    busy = rng.random((2, shape[0])) < 0.15
    for i in range(shape[1]):
        luck = rng.random((2, shape[0]))
        busy = np.where(busy, luck > 1 / 5, luck < 0.15 / 0.85 / 5)
        on[:, :, i] = busy
    slower = on * rng.exponential(0.5, (2, *shape))
    return np.asarray(slower[0] - slower[1] + 0.03 * rng.normal(size=shape), np.float64)


def noises(first: int) -> dict[str, Callable[[int, np.random.Generator], Floats]]:
    """Name -> (releases, rounds) of noise on the log ratio, its typical value 0."""
    blocks = all_blocks(first)
    rounds = sum(blocks)

    def openings(releases: int, rng: np.random.Generator) -> Floats:
        return np.repeat(rng.normal(size=(releases, len(blocks))), blocks, axis=1)

    def drift(releases: int, rng: np.random.Generator) -> Floats:
        phase = np.arange(rounds) / 80 + rng.random((releases, 1))
        return np.asarray(0.03 * np.sin(2 * np.pi * phase), np.float64)

    def normal(releases: int, rng: np.random.Generator) -> Floats:
        return rng.normal(size=(releases, rounds))

    def heavy(releases: int, rng: np.random.Generator) -> Floats:
        return np.asarray(0.03 * np.subtract(*rng.standard_t(2, (2, releases, rounds))), np.float64)

    return {
        "independent": lambda n, rng: 0.05 * normal(n, rng),
        "repeating, AR(1) 0.5": lambda n, rng: 0.05 * autoregressive((n, rounds), 0.5, rng),
        "repeating, AR(1) 0.8": lambda n, rng: 0.05 * autoregressive((n, rounds), 0.8, rng),
        "heavy tails, t(2)": heavy,
        "bursts of 5 rounds": lambda n, rng: bursts((n, rounds), rng),
        "slow swing of 3 %": lambda n, rng: drift(n, rng) + 0.05 * normal(n, rng),
        "each opening 3 % off": lambda n, rng: 0.03 * (openings(n, rng) + normal(n, rng)),
    }


def simulate(releases: int, seed: int) -> None:
    """Print what becomes of releases at the limit and of releases that are better."""
    spread = 100 * 2 * math.sqrt(0.05 * 0.95 / releases)
    few = min(releases, 200)
    print(
        f"{releases:,} releases a row, first look at {FIRST} rounds, {LOOKS} looks; "
        f"the promise is 5 % ± {spread:.1f}\n"
    )
    print("                          true ratio = limit               10 % better     bootstrap")
    print("noise                    PASS    FAIL  decided  rounds    PASS  rounds     PASS*  FAIL*")
    for number, (name, make) in enumerate(noises(FIRST).items()):
        logs = make(releases, np.random.default_rng([seed, number]))
        verdicts, taken = decided(logs, FIRST)
        better, sooner = decided(logs + BETTER, FIRST)
        plain, _ = decided(logs[:few], FIRST, bounds=bootstrap)
        print(
            f"{name:22s} {(verdicts > 0).mean():6.1%}  {(verdicts < 0).mean():6.1%}  "
            f"{(verdicts != 0).mean():7.1%}  {taken.mean():6.0f}  {(better > 0).mean():6.1%}  "
            f"{sooner.mean():6.0f}    {(plain > 0).mean():6.1%} {(plain < 0).mean():6.1%}",
            flush=True,
        )
    print(f"\n* of {few} releases, at the same looks")


def against_itself(times: int) -> None:
    """Measure a matrix product against itself and print how often the interval contains 1."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from exporter.budget import Budgets
    from exporter.graph.model import OnnxModel
    from exporter.judge.measure import measure
    from exporter.target import load_target

    size = 1024
    value = helper.make_tensor_value_info
    weight = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [value("x", TensorProto.FLOAT, ["batch", size])],
        [value("y", TensorProto.FLOAT, ["batch", size])],
        [numpy_helper.from_array(weight, "w")],
    )
    profile = load_target("cloud-cpu")
    target = profile.model_copy(update={"budgets": Budgets(latency_ratio=1.0)})
    contained = passed = failed = 0
    with tempfile.TemporaryDirectory() as folder:
        opset = [helper.make_opsetid("", 17)]
        onnx.save(
            helper.make_model(graph, opset_imports=opset, ir_version=10),
            Path(folder) / "model.onnx",
        )
        model = OnnxModel(Path(folder))
        for seed in range(times):
            measured = measure(
                model,
                model,
                {"x": np.ones((4, size), np.float32)},
                target.workload,
                threads=1,
                rounds=FIRST,
                until=target,
                seconds=0.0,
                seed=seed,
            )
            found = measured.phases(target.evidence)[0]
            contained += found.ratio_low <= 1 <= found.ratio_high
            passed += found.ratio_high <= 1
            failed += found.ratio_low > 1
            print(
                f"{found.ratio:.4f}  [{found.ratio_low:.4f}, {found.ratio_high:.4f}]  "
                f"looks at {', '.join(map(str, measured.looks))}",
                flush=True,
            )
    print(
        f"1 lies within {contained} of {times} intervals; {passed} below, {failed} above "
        f"(each may be {1 - CONFIDENCE:.0%})"
    )


def main() -> None:
    """Simulate, or measure a model against itself."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--releases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--aa", type=int, metavar="N", help="measure a model against itself")
    options = parser.parse_args()
    if options.aa:
        against_itself(options.aa)
    else:
        simulate(options.releases, options.seed)


if __name__ == "__main__":
    main()
