"""The command that trains a checkpoint on: fine-tune."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from exporter.cli.options import (
    Column_,
    Data_,
    Debug_,
    Json_,
    Pickle_,
    Remote_,
    Task_,
    app,
    columns_of,
    stderr,
)
from exporter.errors import InputError
from exporter.exits import print_json, reporting_errors


@app.command(
    name="fine-tune",
    epilog="Examples:\n\n"
    "`exporter fine-tune ./pruned --teacher ./original --data reviews.jsonl --out ./recovered`\n\n"
    "`torchrun --nproc-per-node 2 -m exporter fine-tune ./pruned --teacher ./original "
    "-d reviews.jsonl -o ./recovered --steps 2000 --batch-size 64`",
)
def fine_tune(
    student: Annotated[str, typer.Argument(help="Checkpoint directory or hub id to train on.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the new checkpoint.")],
    data: Data_ = None,
    teacher: Annotated[
        str | None,
        typer.Option("--teacher", "-T", help="The unpruned checkpoint; without it, no distilling."),
    ] = None,
    task: Task_ = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps at most.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Examples a step sees, over all processes.")
    ] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Parts that a process takes its share of a batch in.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak of the schedule.")] = None,
    distill_weight: Annotated[
        str | None, typer.Option(help="0 to 1, or auto: chosen by a short trial.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Softens both distributions.")] = None,
    hidden_weight: Annotated[
        float | None, typer.Option(help="Weight of hidden states' distance to the teacher's.")
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(help="The teacher's layers that the student kept, such as 0,1,3,5."),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="Train adapters of this rank and nothing else.")
    ] = None,
    mixed_precision: Annotated[str | None, typer.Option(help="auto, no or bfloat16.")] = None,
    evaluate_every: Annotated[int | None, typer.Option(help="Steps between looks.")] = None,
    patience: Annotated[
        int | None, typer.Option(help="Looks without improvement before stopping.")
    ] = None,
    stop_gap: Annotated[
        float | None,
        typer.Option(help="Stop once the loss is shown to exceed the teacher's by this at most."),
    ] = None,
    column: Column_ = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")] = 0,
    allow_pickle: Pickle_ = False,
    trust_remote_code: Remote_ = False,
    as_json: Json_ = False,
    debug: Debug_ = False,
) -> None:
    """Train STUDENT on towards its teacher; under torchrun, in several processes at once."""
    from exporter.recovering import fine_tune as run
    from exporter.recovering import is_first

    first = is_first()
    with reporting_errors(debug, as_json and first):
        from exporter.display import progress_for

        given: dict[str, Any] = {
            "steps": steps,
            "batch_size": batch_size,
            "accumulate": accumulate,
            "learning_rate": learning_rate,
            "distill_weight": distill_weight,
            "temperature": temperature,
            "hidden_weight": hidden_weight,
            "rank": rank,
            "mixed_precision": mixed_precision,
            "evaluate_every": evaluate_every,
            "patience": patience,
            "stop_gap": stop_gap,
        }
        try:
            made = run(
                student,
                data=data,
                out=out,
                teacher=teacher,
                task=task,
                options={name: value for name, value in given.items() if value is not None},
                columns=columns_of(column),
                layers=_indices(layers),
                seed=seed,
                allow_pickle=allow_pickle,
                trust_remote_code=trust_remote_code,
                progress=progress_for(stderr()) if first else None,
            )
        except InputError as error:
            if not first:  # every process finds the same; one says it
                sys.exit(error.exit_code)
            raise
        if first:
            _tell(made.directory, made.facts, as_json)


def _indices(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(
            "--layers",
            "must be numbers with commas between them",
            got=text,
            remedy="such as 0,1,3.",
        ) from error


def _tell(directory: Path, facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json({"checkpoint": str(directory), **facts})
        return
    if facts["history"]:
        before = facts["history"][0]["development_loss"]
        bound = facts.get("gap_high")
        told = "" if bound is None else f"; at most {bound:+.4g} from the teacher's (95 %)"
        typer.echo(
            f"development loss {before:.4g} -> {facts['development_loss']:.4g} "
            f"at step {facts['best_step']}{told}"
        )
    typer.echo(f"checkpoint: {directory}")
