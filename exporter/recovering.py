"""Fine-tuning by itself: checkpoints in, a checkpoint out, in as many processes as are started."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.artifact import publishing
from exporter.attempts import DEVELOPMENT_EXAMPLES, TRAIN_EXAMPLES
from exporter.errors import DataError, ModelError
from exporter.models.source import Source, resolve_source
from exporter.models.splits import Splits, make_splits
from exporter.models.tasks import get_task
from exporter.progress import Progress, Silent
from exporter.recipe import FineTune
from exporter.stages import MAX_LENGTH
from exporter.toml import validated

FACTS = "recovery.json"
COMPARED_TEXTS = 64


@dataclass(frozen=True)
class Recovery:
    """What fine-tuning came to.

    Attributes:
        directory: the checkpoint.
        facts: `history`, `best_step`, `development_loss` and `options`, with a teacher
            `gap_high`, after trials `trials`; also in the checkpoint's recovery.json.
    """

    directory: Path
    facts: dict[str, Any]


def is_first() -> bool:
    """True in the process that writes and prints: the first of those that `torchrun` started."""
    return os.environ.get("RANK", "0") == "0"


def fine_tune(
    student: str | Path,
    *,
    data: str | Path | None,
    out: Path | str,
    teacher: str | Path | None = None,
    task: str | None = None,
    options: FineTune | dict[str, Any] | None = None,
    columns: Mapping[str, str] | None = None,
    layers: Sequence[int] | None = None,
    seed: int = 0,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Recovery:
    """Train a checkpoint on, towards its teacher, and write it as it was best on development data.

    The splits are those of `export` with the same data and seed: what it judges on is not seen
    here. Stopped and called again, it goes on. Under `torchrun` the processes train together; the
    first one writes.

    Args:
        student, teacher: checkpoint directories or hub ids; without a teacher the task's own
            loss is all there is.
        out: the new checkpoint's directory.
        options: a FineTune, or some of its values; `largest_cut` and `train_reference` are for
            `export`.
        layers: for each of the student's layers, the teacher's that it came from.

    Raises:
        InputError: something given is wrong, or does not fit the rest.
        RecoveryError: the student's loss is not a number before training.
    """
    if isinstance(options, FineTune):
        chosen = options
    else:
        chosen = validated(
            FineTune, options or {}, place="fine-tune", keys="exporter fine-tune --help"
        )
    if data is None:
        raise DataError("--data", "is missing", remedy="give the task's examples; see --help.")
    source = _checkpoint(student, task, allow_pickle, trust_remote_code)
    taught = None
    if teacher is not None:
        taught = _checkpoint(teacher, source.task, allow_pickle, trust_remote_code)
    directory = Path(out)
    with ExitStack() as held:
        new = held.enter_context(publishing(directory)) if is_first() else None
        splits = make_splits(
            str(data),
            get_task(source.task),
            columns=columns,
            label_names=source.config.get("label2id"),
            seed=seed,
        )
        scratch = directory.absolute().parent / f".{directory.name}.recovery"
        facts = _trained(
            source, taught, splits, chosen, layers, seed, scratch, new, progress or Silent()
        )
    if is_first():
        shutil.rmtree(scratch, ignore_errors=True)
    return Recovery(directory, facts)


def _trained(
    source: Source,
    taught: Source | None,
    splits: Splits,
    options: FineTune,
    layers: Sequence[int] | None,
    seed: int,
    scratch: Path,
    new: Path | None,
    progress: Progress,
) -> dict[str, Any]:
    """Train, and write the checkpoint to `new` where it is given; how it went."""
    from exporter.compress.finetune import fine_tune as run
    from exporter.compress.matching import check_same_tokens
    from exporter.models.load import load_module
    from exporter.models.module import check_finite
    from exporter.models.save import save_checkpoint

    task = get_task(source.task)
    loaded = load_module(source)
    check_finite(source.location, loaded.module)
    original = None if taught is None else load_module(taught)
    if taught is not None and original is not None:
        check_finite(taught.location, original.module)
        texts = [row["text"] for row in splits.train.rows[:COMPARED_TEXTS] if "text" in row]
        check_same_tokens(loaded.preprocessor, original.preprocessor, texts)
    limit = max(TRAIN_EXAMPLES, options.steps * options.batch_size)
    with progress.stage("prepare the data"):
        train = task.prepare(
            splits.train, loaded.preprocessor, source.config, max_length=MAX_LENGTH, limit=limit
        )
        development = task.prepare(
            splits.development,
            loaded.preprocessor,
            source.config,
            max_length=MAX_LENGTH,
            limit=DEVELOPMENT_EXAMPLES,
        )
    result = run(
        loaded.module,
        None if original is None else original.module,
        task,
        train,
        development,
        options,
        seed=seed,
        scratch=scratch,
        layers=layers,
        progress=progress,
    )
    facts = {**result.facts(), "options": options.model_dump()}
    if new is not None:
        save_checkpoint(result.module, loaded.preprocessor, new)
        (new / FACTS).write_text(json.dumps(facts, indent=1), encoding="utf-8")
    return facts


def _checkpoint(
    model: str | Path, task: str | None, allow_pickle: bool, trust_remote_code: bool
) -> Source:
    source = resolve_source(
        str(model), task=task, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code
    )
    if source.kind != "checkpoint":
        raise ModelError(
            source.location,
            "must be a Hugging Face checkpoint to be fine-tuned or to teach",
            remedy="give the directory that save_pretrained wrote.",
        )
    return source
