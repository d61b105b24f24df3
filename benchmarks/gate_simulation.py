"""How often does the quality gate let a release through? Simulated with the gate's own code.

    python benchmarks/gate_simulation.py [--releases N] [--seed N]

Two questions per setting. A candidate whose true loss is exactly the margin must hardly ever
pass (at most 1 − confidence, 5 %). A candidate that is truly equal should pass often: that share
is the power, and it says how many examples a test set needs.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
from numpy.typing import NDArray

from exporter.budget import Budgets
from exporter.judge.quality import judge_quality
from exporter.judge.statistics import paired_difference, required_examples
from exporter.judge.verdict import PASS
from exporter.models.scores import Scores
from exporter.target import Evidence

MARGIN_POINTS = 1.0
PERPLEXITY_LIMIT = 1.03
COSINE_LIMIT = 0.95
EVIDENCE = Evidence()


def accuracy_acceptance(
    count: int, flips: float, drop: float, releases: int, rng: np.random.Generator
) -> float:
    """Share of releases that pass with a true drop of `drop` where `flips` of the answers flip."""
    lost, gained = (flips + drop) / 2, (flips - drop) / 2
    cells = rng.multinomial(count, [lost, gained, 1 - lost - gained], releases)
    _, high = paired_difference(cells[:, 0], cells[:, 1], count, EVIDENCE.confidence)
    return float((100 * high <= MARGIN_POINTS).mean())


def _passes(reference: Scores, candidate: Scores, budgets: Budgets) -> bool:
    judgements = judge_quality(reference, candidate, budgets, EVIDENCE)
    return all(j.verdict is PASS for j in judgements)


def perplexity_acceptance(
    documents: int, loss: float, releases: int, rng: np.random.Generator
) -> float:
    """Share that pass when tokens lose `loss` nats on average, over documents of skewed lengths."""
    budgets = Budgets(perplexity_ratio=PERPLEXITY_LIMIT)
    passed = 0
    for _ in range(releases):
        tokens = np.ceil(rng.lognormal(6, 1, documents))
        before = rng.normal(3.5, 0.4, documents)
        noise = rng.normal(0, 0.02, documents) + rng.normal(0, 0.25, documents) / np.sqrt(tokens)
        passed += _passes(
            _language(before, tokens), _language(before + loss + noise, tokens), budgets
        )
    return passed / releases


def _language(nll: NDArray[np.float64], tokens: NDArray[np.float64]) -> Scores:
    ids = tuple(map(str, range(len(tokens))))
    return Scores("text-generation", ids, {"nll": nll * tokens, "tokens": tokens})


def cosine_acceptance(count: int, mean: float, releases: int, rng: np.random.Generator) -> float:
    """Share that pass when the true mean cosine is `mean`, with a long tail of worse ones."""
    budgets = Budgets(embedding_cosine=COSINE_LIMIT)
    ids = tuple(map(str, range(count)))
    passed = 0
    for _ in range(releases):
        cosine = 1 - (1 - mean) * rng.gamma(2.0, 0.5, count)
        scores = Scores("feature-extraction", ids, {"cosine": cosine})
        passed += _passes(scores, scores, budgets)
    return passed / releases


def main() -> None:
    """Print acceptance rates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--releases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    releases = options.releases
    rng = np.random.default_rng(options.seed)
    noise = 100 * 2 * math.sqrt(0.05 * 0.95 / releases)
    print(f"{releases} releases a figure; at the margin 5 % ± {noise:.1f} is the promise\n")

    print(f"accuracy, margin {MARGIN_POINTS:g} point     equal   half margin   at margin   twice")
    margin = MARGIN_POINTS / 100
    for flips in (0.02, 0.05, 0.10):
        needed = required_examples(flips, margin, EVIDENCE.confidence) or 0
        for count in (400, 1000, 4000, needed):
            row = [
                accuracy_acceptance(count, flips, min(share * margin, flips), releases, rng)
                for share in (0, 0.5, 1, 2)
            ]
            mark = "  <- needed for 80 % power" if count == needed else ""
            print(
                f"  {flips:4.0%} flip, n = {count:5d}   {row[0]:9.1%} {row[1]:13.1%} "
                f"{row[2]:11.1%} {row[3]:7.1%}{mark}"
            )

    print(f"\nperplexity, limit {PERPLEXITY_LIMIT:g}       equal   at limit")
    for documents in (20, 50, 100, 300):
        equal = perplexity_acceptance(documents, 0.0, releases, rng)
        at_limit = perplexity_acceptance(documents, math.log(PERPLEXITY_LIMIT), releases, rng)
        print(f"  {documents:4d} documents        {equal:12.1%} {at_limit:10.1%}")

    print(f"\ncosine, limit {COSINE_LIMIT:g}           0.97   at limit")
    for count in (20, 50, 100, 300):
        good = cosine_acceptance(count, 0.97, releases, rng)
        at_limit = cosine_acceptance(count, COSINE_LIMIT, releases, rng)
        print(f"  {count:4d} examples         {good:12.1%} {at_limit:10.1%}")


if __name__ == "__main__":
    main()
