"""Ranking: what matters in a model, by every criterion, and which criterion is to be believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from exporter.cache import Cache, default_cache_directory
from exporter.errors import DataError, InputError, ModelError, TooFewPositions
from exporter.models.source import resolve_source
from exporter.models.tasks import get_task
from exporter.pipeline import read_splits
from exporter.progress import Progress, Silent
from exporter.recipe import CRITERIA
from exporter.report.importance import (
    ORACLE,
    ImportanceReport,
    KindScores,
    Selected,
    correlation,
)
from exporter.stages import Context, prepare
from exporter.target import load_target
from exporter.weighing import KINDS, USUAL, Weighing

EXAMPLES = 128
DOCUMENTS = 128  # of which windows are taken, where an example is several
Rule = Literal["threshold", "ratio", "parameters", "flops"]


@dataclass(frozen=True)
class Selection:
    """Which units stay: those above a threshold, all but a share, or what a budget holds.

    Attributes:
        value: θ, the share that goes, or the share of the units' own cost that stays.
    """

    rule: Rule
    value: float

    def __str__(self) -> str:
        value = f"{self.value:g}"
        return {
            "threshold": f"importance above {value}",
            "ratio": f"all but a share of {value}",
            "parameters": f"the best, within {value} of the units' parameters",
            "flops": f"the best, within {value} of the units' FLOPs",
        }[self.rule]


def importance(
    model: str | Path,
    *,
    data: str | Path | None,
    task: str | None = None,
    criteria: Sequence[str] = (),
    granularities: Sequence[str] = (),
    examples: int = EXAMPLES,
    ablate: int | None = None,
    damping: float | None = None,
    select: Selection | None = None,
    columns: Mapping[str, str] | None = None,
    seed: int | None = None,
    fresh: bool = False,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> ImportanceReport:
    """Score the parts of a model on its training data; neither model nor data is changed.

    Args:
        model, data, task, columns, seed, cache: as for `export`; the same seed has the same
            training split.
        criteria: names of `CRITERIA`; none: all.
        granularities: of `KINDS`; none: those that pruning removes and the model has.
        examples: feeds that are looked at, spread over the training data.
        ablate: units of each kind that are really switched off, evenly spread; None: all layers,
            heads and groups, and 64 of any other kind.
        damping: share of the mean diagonal added to Hessians; lets `obs` do with too little data.
        select: count what would stay.

    Raises:
        InputError: something given is wrong.
    """
    if data is None:
        raise DataError("--data", "is missing", remedy="give the task's examples; see --help.")
    chosen = _known("--criteria", criteria or CRITERIA, tuple(CRITERIA))
    kinds = _known("--granularity", granularities or USUAL, KINDS)
    source = resolve_source(
        str(model), task=task, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code
    )
    if source.kind == "onnx":
        raise ModelError(
            source.location,
            "must be a checkpoint or a module to be looked into",
            got="an .onnx file",
            remedy="give what it was exported from.",
        )
    target = load_target("mobile")  # every profile divides data alike; only its recipe is read
    recipe = target.recipe if seed is None else target.recipe.model_copy(update={"seed": seed})
    context = Context(
        source,
        get_task(source.task),
        target,
        recipe,
        Cache(cache or default_cache_directory(), fresh=fresh),
        progress or Silent(),
    )
    splits = read_splits(context, str(data), columns, ())
    prepared = prepare(context, splits.train, max(examples, DOCUMENTS))
    work = Weighing(context, prepared, chosen, examples, damping)
    try:
        proxies = work.proxies(kinds)
    except TooFewPositions as error:
        if criteria:
            raise
        # Nobody asked for the one that needs most data; whoever does is told what it lacks.
        context.progress.note(f"obs is left out. {error}")
        chosen = tuple(name for name in chosen if name != "obs")
        work = Weighing(context, prepared, chosen, examples, damping)
        proxies = work.proxies(kinds)
    if not proxies["kinds"]:
        raise ModelError(
            source.location,
            f"has nothing of the kind {' or '.join(kinds)} that is known here",
            remedy="take --granularity row or column.",
        )
    found, loss = [], None
    for kind, told in proxies["kinds"].items():
        ablated: dict[str, Any] = {}
        if ORACLE in chosen and kind in CRITERIA[ORACLE] and ablate != 0:
            ablated = work.ablated(kind, len(told["units"]), ablate)
            loss = ablated["loss"]
        found.append(_scores(kind, told, ablated, chosen))
    return ImportanceReport(
        source.location,
        source.task,
        proxies["feeds"],
        loss,
        tuple(found),
        "" if select is None else str(select),
        tuple(_selected(k, select, proxies["kinds"][k.kind]) for k in found) if select else (),
        tuple(proxies["notes"]),
    )


def _scores(
    kind: str, told: Mapping[str, Any], ablated: Mapping[str, Any], criteria: Sequence[str]
) -> KindScores:
    from exporter.compress.importance import shares

    found: dict[str, tuple[float | None, ...]] = {
        criterion: tuple(round(float(v), 6) for v in shares(np.asarray(values, np.float64)))
        for criterion, values in told["effects"].items()
    }
    changes: list[float | None] = []
    if ablated:
        changes = [None] * len(told["units"])
        sizes = shares(np.abs(np.asarray(ablated["loss_change"], np.float64)))
        judged: list[float | None] = [None] * len(changes)
        for index, change, size in zip(
            ablated["ablated"], ablated["loss_change"], sizes, strict=True
        ):
            changes[index] = float(change) if np.isfinite(change) else None
            judged[index] = round(float(size), 6)
        found[ORACLE] = tuple(judged)
    spearman = {
        criterion: correlation(values, found[ORACLE])
        for criterion, values in found.items()
        if ORACLE in found and criterion != ORACLE
    }
    ordered = {c: found[c] for c in criteria if c in found}
    layers = tuple(told["layers"])
    return KindScores(kind, tuple(told["units"]), layers, ordered, tuple(changes), spearman)


def _selected(scores: KindScores, select: Selection, told: Mapping[str, Any]) -> Selected:
    from exporter.compress.select import above, share, uniform, within

    values = np.nan_to_num(scores.known(scores.shown))
    if select.rule == "threshold":
        kept = above(values, select.value)
    elif select.rule == "ratio":
        kept = share(values, select.value)
    else:
        costs = np.asarray(told[select.rule], np.float64)
        kept = within(values, costs, select.value * float(costs.sum()))
    each = None
    if scores.layers[0] is not None and scores.kind != "layer":
        each = len(uniform(values.reshape(len({*scores.layers}), -1), kept)[0])
    return Selected(scores.kind, scores.shown, len(values), len(kept), each)


def _known(
    option: str, names: Sequence[str] | Mapping[str, Any], all_of: Sequence[str]
) -> tuple[str, ...]:
    for name in names:
        if name not in all_of:
            raise InputError(
                option, f"must be of {', '.join(all_of)}", got=name, remedy="take one of these."
            )
    return tuple(dict.fromkeys(names))
