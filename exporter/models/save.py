"""Save a module as an ordinary checkpoint, with what prepares its inputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def save_checkpoint(module: Any, preprocessor: Any | None, directory: Path) -> None:
    """Write weights, config and the tokenizer or image processor to `directory`."""
    with _without_bars():
        module.save_pretrained(directory)
    if preprocessor is not None:
        preprocessor.save_pretrained(directory)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep the progress bars of transformers away from whoever calls the Python API."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
