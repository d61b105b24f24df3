"""Resume: the one checkpoint that a stopped training run goes on from."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from exporter.cache import sync_file

NAME = "checkpoint.pt"


def save_checkpoint(scratch: Path, identity: str, state: dict[str, Any]) -> None:
    """Replace the checkpoint in `scratch` at once: a kill leaves the old one or the new one.

    Args:
        identity: what the run is a function of; only the same run may go on from it.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    beside = scratch / f"{NAME}.new"
    torch.save({"identity": identity, **state}, beside)
    sync_file(beside)
    os.replace(beside, scratch / NAME)
    sync_file(scratch)


def load_checkpoint(scratch: Path, identity: str) -> dict[str, Any] | None:
    """The state that the same run saved last; None if there is none that can be used."""
    try:
        state: dict[str, Any] = torch.load(scratch / NAME, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, LookupError, ValueError, pickle.UnpicklingError):
        return None  # missing, or damaged by something other than this program
    if state.pop("identity", None) != identity:
        return None
    return state
