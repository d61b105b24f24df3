"""The sentences of an explanation.

Layers are counted from 0 and are the original's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from exporter.report.document import Report
from exporter.report.layers import precision
from exporter.report.removed import Cost, Counted, Layers, Recovered, Removed, Rising
from exporter.report.rows import budget_rows
from exporter.report.wording import ABSENT, number, plain, with_unit

FEW = 4  # layers that each get a sentence of their own
QUALITY = ("accuracy_drop_points", "perplexity_ratio", "embedding_cosine")
TITLES = {
    "layers": "whole layers",
    "ffn": "feed-forward units",
    "heads": "attention heads",
    "hidden": "hidden width",
    "channels": "convolution channels",
    "sparsity": "zeros",
}


def cost_label(cost: Cost) -> str:
    """Where a part lies, or what it is called."""
    if cost.layer is not None:
        return f"layer {cost.layer}"
    return plain(cost.name or TITLES.get(cost.part, cost.part))


def removed_words(removed: Removed | None, unit: str) -> Iterator[str]:
    """What went, what it cost, and what is left; at least that nothing went."""
    if removed is None:
        yield "Nothing was removed: every layer, head and unit of the original is there."
        return
    if removed.layers is not None:
        yield from _layers(removed.layers, _of(removed, "layers"), unit)
    by = f" by {plain(removed.criterion)}" if removed.criterion else ""
    for part, where in (("ffn", " in each layer"), ("heads", " in each layer"), ("hidden", "")):
        if (counted := getattr(removed, part)) is not None:
            yield _counted(TITLES[part], counted, where, by, _of(removed, part), unit)
    if removed.channels is not None:
        told = _of(removed, "channels")
        yield _counted(TITLES["channels"], removed.channels, " in all", "", told, unit)
    yield from _zeros(removed, unit)
    yield from _all(removed, unit)
    if not removed.costs:
        yield "What each part costs alone was not measured when this was made."


def _of(removed: Removed, part: str) -> list[Cost]:
    return [cost for cost in removed.costs if cost.part == part]


def _layers(layers: Layers, costs: Sequence[Cost], unit: str) -> Iterator[str]:
    gone = sorted(set(range(layers.before)) - set(layers.kept))
    of = f"of {layers.before} (counted from 0)"
    if len(gone) <= FEW:
        by_layer = {cost.layer: cost for cost in costs}
        for layer in gone:
            cost = by_layer.get(layer)
            tail = f": alone it {_moves(cost.divergence, unit)}" if cost else ""
            yield f"Layer {layer} {of} was removed{tail}."
        return
    shown = ", ".join(map(str, gone[: 2 * FEW]))
    more = f" and {len(gone) - 2 * FEW} more" if len(gone) > 2 * FEW else ""
    yield f"Layers {shown}{more} {of} were removed{_extremes(costs, unit)}."


def _counted(
    title: str, counted: Counted, where: str, by: str, costs: Sequence[Cost], unit: str
) -> str:
    kept = ""
    if counted.importance_kept is not None:
        kept = f"; {100 * counted.importance_kept:.0f} % of their importance{by} stays"
    went = f"{number(counted.before)} → {number(counted.after)}"
    return f"{title.capitalize()}: {went}{where}{kept}{_extremes(costs, unit)}."


def _extremes(costs: Sequence[Cost], unit: str) -> str:
    """Where a part costs most and where least, or what it costs if it lies in one place."""
    known = [(c.divergence, c) for c in costs if c.divergence is not None]
    if not known:
        return ""
    rounds = len({c.round for _, c in known}) > 1
    most, least = (f(known, key=lambda pair: pair[0]) for f in (max, min))

    def told(pair: tuple[float, Cost]) -> str:
        where = cost_label(pair[1]) + (f" (round {pair[1].round})" if rounds else "")
        return f"{where}: {with_unit(pair[0], unit)}"

    if len(known) == 1:
        return f"; alone this {_moves(most[0], unit)}"
    return f"; costs most in {told(most)}, least in {told(least)}"


def _moves(divergence: float | None, unit: str) -> str:
    if divergence is None:
        return "makes the answers no numbers"
    return f"moves the answers by {with_unit(divergence, unit)}"


def _zeros(removed: Removed, unit: str) -> Iterator[str]:
    if isinstance(removed.sparsity, Rising):
        share = 100 * removed.sparsity.final
        yield f"Zeros: rose to {share:.0f} % of the weights while fine-tuning went on."
    elif removed.sparsity:
        cost = _extremes(_of(removed, "sparsity"), unit)
        share = 100 * removed.sparsity
        yield f"Zeros: {share:.0f} % of the weights, for the download only{cost}."


def _all(removed: Removed, unit: str) -> Iterator[str]:
    """What it comes to: of each round, and in parameters and multiply-accumulates."""
    rounds = removed.told_rounds
    for count, told in enumerate(rounds, 1):
        moved = told.compensated
        if moved is None:
            continue
        head = f"Round {count}: all of it together" if len(rounds) > 1 else "All of it together"
        without = told.compensation.divergence_without if told.compensation else None
        if told.compensation is None or without is None:
            yield f"{head} {_moves(moved, unit)}, before any training."
        else:
            yield (
                f"{head} {_moves(without, unit)}, and {with_unit(moved, unit)} after "
                f"compensation ({plain(told.compensation.method)}), before any training."
            )
    for name, sizes in (
        ("Parameters", removed.parameters),
        ("Multiply-accumulates of one input", removed.multiply_accumulates),
    ):
        if sizes is not None and sizes.before:
            share = 100 * sizes.after / sizes.before
            went = f"{number(sizes.before)} → {number(sizes.after)}"
            yield f"{name}: {went} ({share:.0f} % left)."


def recovered_words(recovered: Recovered | None) -> Iterator[str]:
    """How training made up for it."""
    if recovered is None:
        yield "Nothing was trained."
        return
    looks = [look for look in recovered.history if look.development_loss is not None]
    end = recovered.development_loss
    if not looks or end is None:
        yield "It was fine-tuned; the loss was not looked at."
    elif recovered.best_step == 0:
        yield f"Fine-tuning never helped: the loss on development data stayed {number(end)}."
    else:
        gap = looks[0].gap
        above = f" ({number(gap)} above the teacher's)" if gap is not None else ""
        yield (
            f"Fine-tuning took the loss on development data from "
            f"{number(looks[0].development_loss)}{above} to {number(end)}, "
            f"at step {number(recovered.best_step)}."
        )
    if recovered.gap_high is not None:
        yield f"The loss lies at most {number(recovered.gap_high)} above the teacher's."
    if recovered.quantize_aware:
        yield f"It was trained to be rounded as {plain(recovered.quantize_aware)} rounds."


def quantized_words(report: Report) -> Iterator[str]:
    """What the numbers are made of."""
    scheme = plain(report.recipe.get("quantization") or "none")
    audit = report.audit or {}
    if scheme == "none":
        yield "Nothing was quantized: weights stay float32."
        return
    planned = audit.get("planned")
    kernels = ""
    if number(planned) not in (ABSENT, "0"):
        kernels = (
            f"; {number(audit.get('integer'))} of {number(planned)} planned integer kernels run"
        )
    yield f"Quantization: {scheme}{kernels}."
    drawn = precision(audit)
    if drawn is not None:
        formats = (
            f"{count} {'layer' if count == 1 else 'layers'} {form} ({share} of the bytes)"
            for form, count, share in drawn.formats
        )
        yield f"It runs {', '.join(formats)}."


def judged_words(report: Report) -> Iterator[str]:
    """What quality is left, as it was judged."""
    for row in budget_rows(report):
        if row.metric in QUALITY:
            yield (
                f"On test data {row.title} is {row.measured}, allowed {row.limit} "
                f"({row.reference} → {row.candidate})."
            )
