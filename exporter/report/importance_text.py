"""Importance on a terminal: which criterion foretells ablation, and where in the model it lies."""

from __future__ import annotations

import numpy as np
from rich.console import Console

from exporter.report.importance import ORACLE, ImportanceReport, KindScores
from exporter.report.terminal import Said, bare_table, voice
from exporter.report.wording import ABSENT, number

LEAST = 3  # units that are named from either end


def print_importance(report: ImportanceReport, console: Console) -> None:
    """Print correlations, the mean importance of each layer, and the least and most important."""
    rich, said = voice(console)
    loss = "" if report.loss is None else f", loss {number(report.loss, 4)}"
    console.print()
    console.print(said(f"importance of {report.model}", "bold"), soft_wrap=True)
    console.print(said(f"{report.task}, {report.feeds:,} training feeds{loss}", "dim"))
    console.print()
    _print_correlations(report, console, rich, said)
    _print_layers(report, console, rich, said)
    for kind in report.kinds:
        console.print(said(_ends(kind)), soft_wrap=not console.is_terminal)
    if report.selected:
        console.print()
        table = bare_table(rich)
        table.add_column(said(f"kept: {report.rule}"), overflow="fold")
        for head in ("units", "kept", "each layer", "by"):
            table.add_column(head, justify="right")
        for one in report.selected:
            each = ABSENT if one.uniform is None else f"{one.uniform:,}"
            cells = (one.kind, f"{one.total:,}", f"{one.kept:,}", each, one.criterion)
            table.add_row(*map(said, cells))
        console.print(table)
    for note in report.notes:
        console.print(said(f"note: {note}", "dim"), soft_wrap=not console.is_terminal)


def _print_correlations(report: ImportanceReport, console: Console, rich: bool, said: Said) -> None:
    """Criterion × kind; without ablation there is nothing to compare with."""
    kinds = [kind for kind in report.kinds if kind.spearman and ORACLE in kind.importance]
    if not kinds:
        return
    table = bare_table(rich)
    table.add_column("Spearman with ablation", overflow="fold")
    for kind in kinds:
        table.add_column(kind.kind, justify="right", overflow="fold")
    best = {
        kind.kind: max((r for r in kind.spearman.values() if r is not None), default=None)
        for kind in kinds
    }
    for criterion in report.criteria():
        if criterion == ORACLE:
            continue
        cells = []
        for kind in kinds:
            value = kind.spearman.get(criterion)
            text = ABSENT if value is None else f"{value:+.2f}".replace("-", "−")
            cells.append(
                said(text, "bold" if value is not None and value == best[kind.kind] else "")
            )
        table.add_row(said(criterion), *cells)
    counts = [sum(v is not None for v in kind.importance[ORACLE]) for kind in kinds]
    table.add_row(said("units ablated", "dim"), *(said(f"{n:,}", "dim") for n in counts))
    console.print(table)
    console.print()


def _print_layers(report: ImportanceReport, console: Console, rich: bool, said: Said) -> None:
    """The mean importance of each kind in each layer."""
    kinds = [kind for kind in report.kinds if kind.layers and kind.layers[0] is not None]
    if not kinds:
        return
    table = bare_table(rich)
    table.add_column("mean importance")
    for kind in kinds:
        table.add_column(said(f"{kind.kind}\n{kind.shown}"), justify="right", overflow="fold")
    for layer in dict.fromkeys(kinds[0].layers):
        cells = []
        for kind in kinds:
            inside = kind.known(kind.shown)[[one == layer for one in kind.layers]]
            cells.append(said(f"{np.nanmean(inside):.2f}"))
        table.add_row(said(f"layer {layer}"), *cells)
    console.print(table)
    console.print()


def _ends(kind: KindScores) -> str:
    """The least and the most important units, in words."""
    values = kind.known(kind.shown)
    order = [int(i) for i in np.argsort(values, kind="stable")]
    least = ", ".join(kind.units[i] for i in order[:LEAST])
    most = ", ".join(kind.units[i] for i in reversed(order[-LEAST:]))
    return f"{kind.kind} by {kind.shown}: least {least}; most {most}"
