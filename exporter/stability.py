"""The final judgement, and whether other seeds come to the same one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from exporter import stages
from exporter.attempts import Attempt, Construction, Material, construct
from exporter.cache import sha256_directory
from exporter.devices.host import host_description
from exporter.errors import ExporterError, InputError
from exporter.judge.gate import judge
from exporter.judge.latency import rounds_for
from exporter.judge.measure import Measurements
from exporter.judge.reading import Reading
from exporter.judge.verdict import Judgement, overall
from exporter.models.examples import Feeds
from exporter.models.scores import Scores
from exporter.models.splits import Splits
from exporter.readings import record_reading, split_hash
from exporter.stages import Built, Context, Prepared, about
from exporter.surveying import surveyed


@dataclass(frozen=True)
class Outcome:
    """The final judgement and what it rests on."""

    reference_scores: Scores
    candidate_scores: Scores
    measurements: Measurements
    judgements: tuple[Judgement, ...]
    earlier_readings: tuple[str, ...] = ()  # candidates that were judged on the test split before
    devices: tuple[Reading, ...] = ()  # what the target's devices told, on development data


@dataclass(frozen=True)
class Repeat:
    """The candidate that ships, made again with another seed.

    Attributes:
        verdict: over all budgets; "ERROR" when it could not be made.
        measured: metric -> what the budget limits, None where it could not be measured.
        lost: metrics whose budget did not pass.
        reason: of an error, else "".
    """

    seed: int
    verdict: str
    measured: Mapping[str, float | None]
    lost: tuple[str, ...]
    reason: str = ""


@dataclass(frozen=True)
class Spread:
    """Values of one metric over all seeds; of those that were measured."""

    low: float
    high: float
    mean: float
    deviation: float


@dataclass(frozen=True)
class Stability:
    """Every seed, the one that ships first.

    Attributes:
        varies: the candidate depends on the seed at all: it was trained or calibrated.
    """

    repeats: tuple[Repeat, ...]
    spread: Mapping[str, Spread]
    varies: bool


def final_judgement(
    context: Context,
    reference: Built,
    made: Construction,
    test: Prepared,
    feeds: Feeds,
    *,
    development: Prepared | None = None,
) -> Outcome:
    """The one reading of the test split, and the full timing, of the candidate that ships.

    Args:
        development: what the target's devices answer; None asks none of them.
    """
    earlier = record_reading(
        context.cache.root,
        model=context.source.content_hash,
        test=split_hash(test.examples.ids),
        candidate=sha256_directory(made.built.model.directory),
    )
    before, after = stages.judged_scores(context, made.reference, made.built, test)
    rounds = rounds_for(context.target, host_description())
    measurements = stages.measured(context, reference, made.built, feeds, rounds, decide=True)
    told: tuple[Reading, ...] = ()
    if development is not None:
        models = made.reference.model, made.built.model
        told = surveyed(context, *models, development.examples, feeds)
    judgements = judge(before, after, measurements, context.target, told)
    return Outcome(before, after, measurements, judgements, earlier, told)


def repeat(
    context: Context,
    chosen: Attempt,
    reference: Built,
    material: Material,
    splits: Splits,
    test: Prepared,
    judgements: tuple[Judgement, ...],
    seeds: int,
) -> Stability | None:
    """Recover and calibrate the chosen candidate with further seeds, and judge each the same way.

    Nothing is chosen from what comes out: the first seed ships, whatever the others say. They are
    judged on the same test examples, against the same reference, so that figures compare.

    Returns:
        None for one seed.
    """
    if seeds < 2 or chosen.made is None:
        return None
    first = context.recipe.seed
    repeats = [_repeat(first, judgements)]
    varies = False
    for seed in range(first + 1, first + seeds):
        seeded = replace(
            about(context, f"seed {seed}"),
            recipe=context.recipe.model_copy(update={"seed": seed}),
        )
        try:
            anew = replace(material, calibration=stages.prepare(seeded, splits.recalibrated(seed)))
            made = construct(seeded, chosen.candidate, reference, anew, teacher=chosen.made.teacher)
            varies |= made.built.key != chosen.made.built.key
            outcome = final_judgement(seeded, reference, made, test, material.feeds)
            repeats.append(_repeat(seed, outcome.judgements))
        except InputError:
            raise
        except ExporterError as error:
            repeats.append(Repeat(seed, "ERROR", {}, (), str(error)))
    return Stability(tuple(repeats), _spread(repeats), varies)


def _repeat(seed: int, judgements: tuple[Judgement, ...]) -> Repeat:
    return Repeat(
        seed,
        overall(judgements).value,
        {j.metric: j.measured for j in judgements},
        tuple(j.metric for j in judgements if j.verdict != "PASS"),
    )


def _spread(repeats: list[Repeat]) -> dict[str, Spread]:
    found = {}
    for metric in repeats[0].measured:
        values = [v for r in repeats if (v := r.measured.get(metric)) is not None]
        if not values:
            continue
        mean = math.fsum(values) / len(values)
        squares = math.fsum((v - mean) ** 2 for v in values)
        deviation = math.sqrt(squares / (len(values) - 1)) if len(values) > 1 else 0.0
        found[metric] = Spread(min(values), max(values), mean, deviation)
    return found
