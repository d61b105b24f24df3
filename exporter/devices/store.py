"""What devices need and fetch lies in the user's cache, whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

from exporter.cache import default_cache_directory, explained_os_error, sync_directory, sync_file

# Two versions of the tool may share a store: what one supersedes the other may want tomorrow.
_UNUSED_S = 7 * 24 * 3600


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
    """The finished installation `name` of these `contents`, or None.

    It stays where it is for as long as this process lives.
    """
    found = place(name, contents)
    if found.is_dir():
        _hold(found)
    return found if found.is_dir() else None


def install(
    name: str,
    contents: Mapping[str, Any],
    make: Callable[[Path], None],
    stage: AbstractContextManager[object] | None = None,
) -> Path:
    """The installation `name`, made by `make` in an empty directory unless it is there.

    One that was cut leaves nothing that counts as installed. Two at once make it one after the
    other, so that the second finds it. One that is made supersedes those of other contents, which
    are removed unless a process uses them, or used them in the last seven days.

    Args:
        stage: entered when it is not there, to show that something is fetched.

    Raises:
        OutputError: the disk is full, or the cache cannot be written.
    """
    target = place(name, contents)
    if not target.is_dir():
        with stage or nullcontext():
            _install(name, target, make)
    _hold(target)
    return target


def _install(name: str, target: Path, make: Callable[[Path], None]) -> None:
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
                _prune(name, target)
    except OSError as error:
        raise explained_os_error(error, target, remedy="or set EXPORTER_CACHE.") from error


@cache
def _hold(installation: Path) -> IO[str] | None:
    """Share its lock until this process ends; the lock's time says when it was used last."""
    try:
        lock = installation.with_suffix(".used").open("a")
        os.utime(lock.fileno())
    except OSError:
        return None  # in a store that is not writable, which nothing is removed from
    fcntl.flock(lock, fcntl.LOCK_SH)
    return lock


def _prune(name: str, kept: Path) -> None:
    """Remove what other installations of `name`, whole or cut, left; what cannot be, stays."""
    named = re.compile(rf"{re.escape(name)}-[0-9a-f]{{12}}(\.new)?")
    found = [path for path in kept.parent.iterdir() if named.fullmatch(path.name)]
    for old in {path.with_suffix("") for path in found} - {kept}:
        new = old.with_suffix(".new")
        times = (old, new, old.with_suffix(".used"))
        with suppress(OSError), ExitStack() as locks:  # BlockingIOError: in use, or being made
            if time.time() - max(p.stat().st_mtime for p in times if p.exists()) < _UNUSED_S:
                continue
            for suffix in (".lock", ".used"):
                lock = locks.enter_context(old.with_suffix(suffix).open("a"))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(new, ignore_errors=True)
            if old.is_dir():
                old.rename(new)  # half of one must not count as installed
                shutil.rmtree(new, ignore_errors=True)
