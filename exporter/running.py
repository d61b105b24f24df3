"""Run an artifact once on a device: what it answers to one input, and what that costs there."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.artifact import load_artifact
from exporter.device_runs import settings_of
from exporter.devices.device import Job, Ran, Traits
from exporter.devices.local import KIND as LOCAL
from exporter.devices.registry import open_device
from exporter.devices.runner import fitted
from exporter.errors import DataError
from exporter.evidence import fact, model_config
from exporter.graph.model import OnnxModel
from exporter.graph.session import open_run
from exporter.judge.agreement import difference, same_tokens
from exporter.judge.device_cost import cost_of
from exporter.judge.reading import Cost
from exporter.judge.survey import may_saturate
from exporter.models.examples import Development, Feeds, Outputs, Split, stack
from exporter.models.runner import main_output
from exporter.models.tasks import Task, get_task
from exporter.models.text import label_names
from exporter.progress import Progress, Silent
from exporter.recheck import target_of
from exporter.stages import MAX_LENGTH
from exporter.surveying import entry_for
from exporter.target import Workload

MAX_INPUT_BYTES = 64 << 20
_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
_TOP = 3


@dataclass(frozen=True)
class Run:
    """One run of an artifact on a device.

    Attributes:
        answers: one an input, JSON-ready: `labels` with their probabilities, or the `text` that a
            language model wrote, or the `embedding`.
        cost: in the device's unit.
        differs: largest difference of the outputs from those here, over the RMS of those here where
            that exceeds 1; of a language model, that of the logits up to the first token that is
            another. None where the device is this machine.
        same: share of the tokens that a language model wrote, or of a classifier's answers, that
            are those here; None where nothing is chosen or the device is this machine.
    """

    artifact: Path
    traits: Traits
    ran: Ran
    answers: tuple[dict[str, Any], ...]
    cost: Cost
    differs: float | None
    same: float | None

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "artifact": str(self.artifact),
            "device": asdict(self.traits),
            "runtime": self.ran.runtime,
            "answers": list(self.answers),
            "cost": {"unit": self.traits.cost, **asdict(self.cost)},
            "difference_to_here": self.differs,
            "same_as_here": self.same,
            "facts": dict(self.ran.facts),
        }


def run(
    artifact: Path | str,
    *,
    on: str = "local",
    input_file: Path | str | None = None,
    repeats: int = 3,
    python: str | None = None,
    timeout_s: float = 900,
    progress: Progress | None = None,
) -> Run:
    """Run the model of an artifact on one device.

    Args:
        on: the device, as `exporter devices` lists it.
        input_file: a text, a picture, a .json or .jsonl file of rows, or an .npz of feeds; None
            makes one of the workload's size.
        repeats: times that the workload is run for its cost.
        python: interpreter on a device behind ssh or adb; None: python3.

    Raises:
        InputError: artifact, input or device cannot be used.
        DeviceError: the device failed; see `exporter.errors`.
    """
    found = load_artifact(artifact)
    shown = progress or Silent()
    profile = target_of(found)
    entries = [entry for entry in profile.devices if entry.name == on]
    entry = entries[0] if entries else entry_for(on)
    # What runs on a device is its owner's word, never that of whoever made the artifact.
    entry = entry.model_copy(update={"python": python})
    device = open_device(on, settings_of(entry, profile))
    task = get_task(str(fact(found, "source", "task")))
    config = model_config(found)
    from exporter.models.load import preprocessor_from

    preprocessor = preprocessor_from(found.model_directory, task.name)
    model = OnnxModel(found.model_directory)
    here = open_run(model)
    given = _feeds(task, preprocessor, config, input_file, profile.workload)
    cached = any(name.startswith("past_key_values") for name in here.inputs)
    workload = _workload(profile.workload, given[0], model, cached)
    job = Job(
        model.directory,
        () if cached else tuple(here.complete(feeds) for feeds in given),
        here.complete(given[0]) if not cached else given[0],
        workload,
        repeats=repeats,
        threads=profile.threads,
    )
    ran = device.run(job, timeout_s=timeout_s, progress=shown)
    if may := may_saturate(device.traits, model):
        ran = replace(ran, facts={**ran.facts, "saturation": may})
    if cached:
        answers = _written(ran, preprocessor)
    else:
        answers = [_answer(task, outputs, config) for outputs in ran.outputs]
    differs = same = None
    if on != LOCAL.name and cached:
        once = replace(job, repeats=1)
        ours = LOCAL.open("", {}).run(once, timeout_s=timeout_s, progress=shown)
        differs, same = _as_written(ours, ran), same_tokens(ours.tokens, ran.tokens)
    elif on != LOCAL.name:
        outputs = tuple(here(feeds) for feeds in given)
        differs, same = difference(outputs, ran.outputs), _same_choices(outputs, ran.outputs)
    cost = cost_of(ran, workload)
    return Run(Path(artifact), device.traits, ran, tuple(answers), cost, differs, same)


def _as_written(here: Ran, there: Ran) -> float | None:
    """`difference` of logits (steps, batch, vocabulary) as long as both have read the same."""
    same = (np.asarray(here.tokens) == np.asarray(there.tokens)).all(0)  # (steps,)
    steps = len(same) if same.all() else int(same.argmin()) + 1
    return difference(({"logits": here.logits[:steps]},), ({"logits": there.logits[:steps]},))


def _same_choices(here: tuple[Outputs, ...], there: tuple[Outputs, ...]) -> float | None:
    """Share of rows of logits with the greatest where it is here; None where there are no rows."""
    same = [
        ours["logits"].argmax(-1).ravel() == theirs["logits"].argmax(-1).ravel()
        for ours, theirs in zip(here, there, strict=True)
        if "logits" in ours and ours["logits"].shape[-1] > 1
    ]
    return float(np.concatenate(same).mean()) if same else None


def _workload(workload: Workload, feeds: Feeds, model: OnnxModel, cached: bool) -> Workload:
    """The profile's, for the prompt that was given, as far as the model's context goes."""
    first = next(iter(feeds.values()))
    shape = {"batch": len(first)}
    if cached:
        shape["prompt_length"] = feeds["input_ids"].shape[1]
    asked = workload.model_copy(update=shape)
    return Workload(**fitted(asked.model_dump(), [model.directory]))


def _feeds(
    task: Task,
    preprocessor: Any,
    config: dict[str, Any],
    input_file: Path | str | None,
    workload: Workload,
) -> list[Feeds]:
    """One batch of one an input."""
    if input_file is None:
        length = workload.prompt_length if task.joint else workload.sequence_length
        if task.name != "image-classification" and preprocessor is not None:
            from exporter.models.text import model_length

            length = model_length(preprocessor, config, length)
        return [task.example_feeds(config, preprocessor, batch=workload.batch, length=length)]
    path = Path(input_file)
    place = f"--input {input_file}"
    try:
        if not path.is_file():
            raise DataError(place, "must be a file", remedy="give a text, a picture or an .npz.")
        if path.stat().st_size > MAX_INPUT_BYTES:
            raise DataError(place, "must be smaller than 64 MiB", remedy="give one input.")
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as loaded:
                feeds = _batch(dict(loaded), place)
            from exporter.models.text import refuse_unknown_tokens

            refuse_unknown_tokens(feeds, config, place)
            return [feeds]
        rows = _rows(path, task, place)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(
            place, "cannot be read", got=str(error)[:200], remedy="give another file."
        ) from error
    if preprocessor is None:
        raise DataError(
            place,
            "needs a preprocessor, and the artifact has none",
            remedy="give an .npz of feeds.",
        )
    rows = [{"label": 0, **row} for row in rows]
    split = Split(Development, rows, tuple(str(i) for i in range(len(rows))))
    examples = task.prepare(split, preprocessor, config, max_length=MAX_LENGTH)
    return [stack([feeds], examples.pad) for feeds in examples.feeds]


def _batch(feeds: Feeds, place: str) -> Feeds:
    """Feeds that are numbers, all of one batch."""
    numbers = all(array.dtype.kind in "biuf" and array.ndim for array in feeds.values())
    batches = {len(array) for array in feeds.values()} if numbers else set()
    if len(batches) != 1 or 0 in batches:
        told = ", ".join(f"{n} {a.dtype} {a.shape}" for n, a in feeds.items())
        raise DataError(
            place,
            "must hold arrays of numbers with the same batch, 1 or more, in front",
            got=told[:200] or "nothing",
            remedy="save one array for each input of the model.",
        )
    return feeds


def _rows(path: Path, task: Task, place: str) -> list[dict[str, Any]]:
    if path.suffix.lower() in _IMAGES:
        if task.name != "image-classification":
            raise DataError(place, f"must be text for {task.name}", remedy="give a .txt file.")
        return [{"image": str(path.resolve())}]
    text = path.read_text(encoding="utf-8")
    if not text.strip():
        raise DataError(place, "must not be empty", remedy="write an input into it.")
    if path.suffix == ".json":
        found = json.loads(text)
        rows = found if isinstance(found, list) else [found]
    elif path.suffix == ".jsonl":
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    elif task.name == "image-classification":
        raise DataError(place, "must be a picture", remedy=f"one of {', '.join(_IMAGES)}.")
    else:
        rows = [{"text": text}]
    if not all(isinstance(row, Mapping) for row in rows):
        raise DataError(place, "must hold objects", remedy='such as {"text": "..."}.')
    return [dict(row) for row in rows]


def _answer(task: Task, outputs: Feeds, config: dict[str, Any]) -> dict[str, Any]:
    array = np.asarray(main_output(outputs, "logits"), np.float64)
    if not task.name.endswith("classification"):
        name = "logits" if "logits" in outputs else next(iter(outputs))
        return {"output": name, "shape": list(array.shape), "first": _head(array)}
    logits = array.reshape(-1, array.shape[-1])[0]
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    names = label_names(config)
    best = np.argsort(-shares)[:_TOP]
    return {
        "labels": {names[i] if i < len(names) else str(i): round(float(shares[i]), 4) for i in best}
    }


def _head(array: NDArray[np.float64]) -> list[float]:
    return [round(float(value), 5) for value in array.reshape(-1)[:5]]


def _written(ran: Ran, tokenizer: Any) -> list[dict[str, Any]]:
    answers = []
    for tokens in np.asarray(ran.tokens):
        answer: dict[str, Any] = {"tokens": [int(token) for token in tokens]}
        if tokenizer is not None:
            answer["text"] = tokenizer.decode(answer["tokens"])
        answers.append(answer)
    return answers
