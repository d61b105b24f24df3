"""Matching: whether student, teacher, task and data fit each other, told before hours are spent."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from exporter.errors import DataError, ModelError
from exporter.models.examples import Examples
from exporter.models.tasks import Task

# Config entries that must agree for answers to be compared, by what they say to a person.
_SAME = {"vocab_size": "words of the vocabulary", "num_labels": "classes"}


def check_teacher(student: nn.Module, teacher: nn.Module, task: Task) -> None:
    """Refuse a teacher whose answers are not comparable to the student's.

    Raises:
        ModelError: another input, vocabulary, number of classes, order of classes, or image size.
    """
    takes, asks = (getattr(m, "main_input_name", None) for m in (student, teacher))
    if takes and asks and takes != asks:
        raise ModelError(
            "the teacher",
            f"must have the student's input, {takes}",
            got=asks,
            remedy="distil from the model that the student was made from.",
        )
    ours, theirs = _config(student), _config(teacher)
    entries = dict(_SAME)
    if not task.name.endswith("classification"):
        del entries["num_labels"]
    if task.name == "image-classification":
        entries["image_size"] = entries["num_channels"] = "pixels"
    for name, what in entries.items():
        mine, taught = getattr(ours, name, None), getattr(theirs, name, None)
        if mine is not None and taught is not None and mine != taught:
            raise ModelError(
                "the teacher",
                f"must have the student's {name} of {mine} {what}",
                got=taught,
                remedy="distil from the model that the student was made from.",
            )
    names, told = getattr(ours, "label2id", None), getattr(theirs, "label2id", None)
    if "num_labels" in entries and names and told and names != told:
        raise ModelError(
            "the teacher",
            f"must have the student's classes in their order, {_listed(names)}",
            got=_listed(told),
            remedy="distil from the model that the student was made from.",
        )


def check_same_tokens(student: Any, teacher: Any, texts: list[str]) -> None:
    """Refuse a teacher whose tokenizer reads texts otherwise than the student's.

    Args:
        student, teacher: tokenizers; None where a model has none.

    Raises:
        ModelError: another vocabulary, or other tokens for one of `texts`.
    """
    if student is None or teacher is None or not hasattr(student, "get_vocab"):
        return
    same = student.get_vocab() == teacher.get_vocab() and all(
        student(text)["input_ids"] == teacher(text)["input_ids"] for text in texts
    )
    if not same:
        raise ModelError(
            "the teacher",
            "must have the student's tokenizer: word by word, the same tokens",
            got="other tokens",
            remedy="distil from the model that the student was made from.",
        )


def check_some(examples: Examples[Any]) -> None:
    """Refuse a split without examples.

    Raises:
        DataError: there are none.
    """
    if not examples.feeds:
        raise DataError(
            f"the {examples.role.name} split",
            "must hold examples to fine-tune with",
            got="none",
            remedy="give more data.",
        )


def check_labels(student: nn.Module, examples: Examples[Any]) -> None:
    """Refuse labels that the student has no class for.

    Raises:
        DataError: a label is negative, or not below the student's number of classes.
    """
    classes = getattr(_config(student), "num_labels", None)
    if examples.labels is None or not len(examples.labels) or classes is None:
        return
    low, high = int(np.min(examples.labels)), int(np.max(examples.labels))
    if low < 0 or high >= classes:
        raise DataError(
            f"the {examples.role.name} split",
            f"labels must be 0 to {classes - 1}, the student's classes",
            got=low if low < 0 else high,
            remedy="give data with the model's labels.",
        )


def has_own_loss(task: Task, examples: Examples[Any]) -> bool:
    """Whether the task has a loss of its own on this data, beside distillation."""
    if "label" in task.columns and examples.labels is None:
        return False
    return any(task.loss_terms(feed)[0] for feed in examples.feeds)


def check_layers(kept: tuple[int, ...], student: int, teacher: int) -> None:
    """Refuse a map of layers that does not fit both models.

    Raises:
        ModelError: not one of the teacher's layers, ascending, for each of the student's.
    """
    if (
        len(kept) != student
        or list(kept) != sorted({*kept})
        or not 0 <= kept[0] <= kept[-1] < teacher
    ):
        raise ModelError(
            "the kept layers",
            f"must name {student} of the teacher's {teacher} layers, ascending from 0",
            got=",".join(map(str, kept)),
            remedy="leave them out to spread the layers evenly.",
        )


def layer_count(module: nn.Module) -> int | None:
    """Layers by the module's config; None if it does not say."""
    found = getattr(_config(module), "num_hidden_layers", None)
    return found if isinstance(found, int) else None


def hidden_width(module: nn.Module) -> int | None:
    """Width of the hidden states by the module's config; None if it does not say."""
    found = getattr(_config(module), "hidden_size", None)
    return found if isinstance(found, int) else None


def _config(module: nn.Module) -> Any:
    return getattr(module, "config", None)


def _listed(names: dict[str, int]) -> str:
    told = sorted(names, key=lambda name: names[name])
    return ", ".join(told[:4]) + (" …" if len(told) > 4 else "")
