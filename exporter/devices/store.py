"""What devices need and fetch lies in the user's cache, whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from exporter.cache import default_cache_directory, explained_os_error, sync_directory, sync_file


def store() -> Path:
    """`$EXPORTER_DEVICES`, else `devices/` in the directory of finished stages."""
    return Path(os.environ.get("EXPORTER_DEVICES") or default_cache_directory() / "devices")


def downloads() -> Path:
    """Where downloads lie, also cut ones that the next run continues."""
    folder = store() / "downloads"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def place(name: str, contents: Mapping[str, Any]) -> Path:
    """Where the installation `name` of these `contents` (versions, hashes) lies or would lie."""
    text = json.dumps([name, contents], sort_keys=True)
    return store() / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def installed(name: str, contents: Mapping[str, Any]) -> Path | None:
    """The finished installation `name` of these `contents`, or None."""
    found = place(name, contents)
    return found if found.is_dir() else None


def install(
    name: str,
    contents: Mapping[str, Any],
    make: Callable[[Path], None],
    stage: AbstractContextManager[object] | None = None,
) -> Path:
    """The installation `name`, made by `make` in an empty directory unless it is there.

    One that was cut leaves nothing that counts as installed. Two at once make it one after the
    other, so that the second finds it.

    Args:
        stage: entered when it is not there, to show that something is fetched.

    Raises:
        OutputError: the disk is full, or the cache cannot be written.
    """
    target = place(name, contents)
    if not target.is_dir():
        with stage or nullcontext():
            _install(target, make)
    return target


def _install(target: Path, make: Callable[[Path], None]) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.is_dir():
                new = target.with_suffix(".new")
                shutil.rmtree(new, ignore_errors=True)
                new.mkdir()
                try:
                    make(new)
                    sync_directory(new)
                    new.rename(target)
                    sync_file(target.parent)
                finally:
                    shutil.rmtree(new, ignore_errors=True)
    except OSError as error:
        raise explained_os_error(error, target, remedy="or set EXPORTER_CACHE.") from error
