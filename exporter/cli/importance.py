"""The command that says what matters in a model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from exporter.cli.options import (
    Column_,
    Data_,
    Debug_,
    Json_,
    Pickle_,
    Remote_,
    Seed_,
    Task_,
    app,
    columns_of,
    stderr,
)
from exporter.errors import InputError
from exporter.exits import print_json, refuse_lost, reporting_errors, write_text

if TYPE_CHECKING:
    from exporter.ranking import Selection


@app.command(
    epilog="Examples:\n\n`exporter importance ./my-model --data reviews.jsonl`\n\n"
    "`exporter importance ./my-model -d reviews.jsonl --granularity head,layer --html heads.html`"
    "\n\n`exporter importance ./my-model -d reviews.jsonl --criteria wanda,obs --ratio 0.3`"
)
def importance(
    model: Annotated[
        str, typer.Argument(help="Checkpoint directory, hub id, or package.module:function.")
    ],
    data: Data_ = None,
    task: Task_ = None,
    criteria: Annotated[
        str | None, typer.Option("--criteria", help="Names, with commas between; default: all.")
    ] = None,
    granularity: Annotated[
        str | None,
        typer.Option(
            "--granularity",
            help="Of layer, head, group, ffn, hidden, channel, row, column, weight; default: "
            "those of the first six that the model has.",
        ),
    ] = None,
    examples: Annotated[
        int, typer.Option("--examples", min=1, help="Training feeds that are looked at.")
    ] = 128,
    ablate: Annotated[
        int | None,
        typer.Option(
            "--ablate",
            min=0,
            help="Units of a kind that are really switched off; default: all layers, heads and "
            "groups, 64 of other kinds.",
        ),
    ] = None,
    damping: Annotated[
        float | None,
        typer.Option("--damping", min=1e-9, help="Of Hessians; lets obs do with little data."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", min=0, max=1, help="Count the units above it."),
    ] = None,
    ratio: Annotated[
        float | None, typer.Option("--ratio", min=0, max=1, help="Count all but this share.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option("--budget", help="Count what fits: parameters=0.5 or flops=0.5."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Draw it, too: one file that needs no other.")
    ] = None,
    column: Column_ = None,
    seed: Seed_ = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Redo finished stages.")] = False,
    allow_pickle: Pickle_ = False,
    trust_remote_code: Remote_ = False,
    as_json: Json_ = False,
    debug: Debug_ = False,
) -> None:
    """Say what matters in MODEL, by every criterion, and which of them foretell ablation."""
    with reporting_errors(debug, as_json):
        from exporter.display import progress_for
        from exporter.ranking import importance as run
        from exporter.report.importance_html import importance_to_html
        from exporter.report.importance_text import print_importance

        refuse_lost(html)
        found = run(
            model,
            data=data,
            task=task,
            criteria=_names("--criteria", criteria),
            granularities=_names("--granularity", granularity),
            examples=examples,
            ablate=ablate,
            damping=damping,
            select=_selection(threshold, ratio, budget),
            columns=columns_of(column),
            seed=seed,
            fresh=fresh,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
            progress=progress_for(stderr()),
        )
        if html is not None:
            write_text(html, importance_to_html(found))
        if as_json:
            print_json(found.to_json())
        else:
            print_importance(found, Console())


def _names(option: str, text: str | None) -> list[str]:
    if text is None:
        return []
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise InputError(
            option, "must name one at least", got=repr(text), remedy="or leave it out for all."
        )
    return names


def _selection(
    threshold: float | None, ratio: float | None, budget: str | None
) -> Selection | None:
    from exporter.ranking import Selection

    given = {"--threshold": threshold, "--ratio": ratio, "--budget": budget}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise InputError(
            " and ".join(named), "cannot be given together", remedy="take one of them."
        )
    if threshold is not None:
        return Selection("threshold", threshold)
    if ratio is not None:
        return Selection("ratio", ratio)
    if budget is None:
        return None
    rule, _, text = budget.partition("=")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if rule not in ("parameters", "flops") or not 0 <= value <= 1:
        raise InputError(
            "--budget",
            "must be parameters=SHARE or flops=SHARE, a share of 0 to 1",
            got=budget,
            remedy="such as flops=0.5.",
        )
    return Selection("flops" if rule == "flops" else "parameters", value)
