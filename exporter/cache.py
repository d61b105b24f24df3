"""Finished stages by content hash: the same inputs never cost twice, a crash costs one stage.

A stage is keyed by everything that decides its result: its name, the content of its
inputs, its options, the source of this package and the versions of the libraries that
compute it. Its result is a directory. It is written beside, synced and renamed, so an
entry either is whole or is not there. A stage that is redone makes a further entry, `<key>.2`;
the one before stays for as long as a run that got it goes on.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Any

import platformdirs

from exporter.errors import OutputError

LIBRARIES = (
    "torch",
    "transformers",
    "optimum",
    "onnx",
    "onnxruntime",
    "onnxruntime-genai",
    "onnxscript",
    "onnx-ir",
    "onnxconverter-common",
    "tokenizers",
    "datasets",
    "numpy",
    "pillow",
)


def default_cache_directory() -> Path:
    """`$EXPORTER_CACHE`, else the platform's user cache directory."""
    return Path(os.environ.get("EXPORTER_CACHE") or platformdirs.user_cache_dir("exporter"))


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_directory(directory: Path) -> str:
    """One SHA-256 over the relative names and contents of all files below `directory`."""
    digest = hashlib.sha256()
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(directory).as_posix()}\0{sha256_file(path)}\n".encode())
    return digest.hexdigest()


@cache
def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that compute results."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions


@cache
def code_hash(room: str) -> str:
    """SHA-256 over the sources of a room (`compress`) and of all that lies beside the rooms.

    Beside the rooms lie the nouns, and the stages that hand a room its arguments. Sources, not a
    version number: an edited checkout must not hit what older code made.
    """
    package = Path(__file__).resolve().parent
    sources = sorted({*(package / room).rglob("*.py"), *package.glob("*.py")})
    digest = hashlib.sha256()
    for path in sources:
        digest.update(f"{path.relative_to(package).as_posix()}\0{sha256_file(path)}\n".encode())
    return digest.hexdigest()


def stage_key(stage: str, rooms: tuple[str, ...], inputs: dict[str, Any]) -> str:
    """The key of a stage: 32 hex digits over all that decides its result.

    Args:
        stage: the stage's name.
        rooms: rooms of this package whose code the stage runs.
        inputs: JSON-ready content hashes and options.
    """
    material = {
        "stage": stage,
        "code": {room: code_hash(room) for room in rooms},
        "versions": library_versions(),
        "inputs": inputs,
    }
    text = json.dumps(material, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Cache:
    """A directory of finished stages.

    Attributes:
        root: where entries lie.
        fresh: redo every stage once in this run, replacing what is there.
        settled: keys that this run got already, which it does not redo.
        held: entries that this run got, each with the lock that keeps it there.
    """

    root: Path
    fresh: bool = False
    settled: set[str] = field(default_factory=set, repr=False)
    held: dict[Path, IO[str]] = field(default_factory=dict, repr=False)

    def get_or_make(
        self,
        stage: str,
        rooms: tuple[str, ...],
        inputs: dict[str, Any],
        make: Callable[[Path, Path], None],
        *,
        redo_if: Callable[[Path], bool] | None = None,
    ) -> Path:
        """The finished directory of a stage, made now if it is not there.

        Args:
            make: called as `make(out, scratch)`. `out` is a new empty directory to fill;
                `scratch` belongs to this key and outlives a crash, so a stage can resume from it.
                It is removed once the stage is finished.
            redo_if: tells of an entry of an earlier run whether this run makes it anew.

        Raises:
            OutputError: the disk is full or the cache is not writable.
        """
        key = stage_key(stage, rooms, inputs)
        folder = self.root / stage
        scratch, out = folder / f"{key}.scratch", folder / f"{key}.new"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder / f"{key}.lock"):
                entries = _entries(folder, key)
                found = entries[max(entries)] if entries else None
                redo = key not in self.settled and (
                    self.fresh or (found and redo_if and redo_if(found))
                )
                if found and not redo:
                    self.settled.add(key)
                    os.utime(found)
                    return self._hold(found)
                if redo:
                    shutil.rmtree(scratch, ignore_errors=True)
                shutil.rmtree(out, ignore_errors=True)
                out.mkdir()
                scratch.mkdir(exist_ok=True)
                make(out, scratch)
                sync_directory(out)
                entry = folder / (f"{key}.{max(entries) + 1}" if entries else key)
                out.rename(entry)
                sync_file(folder)
                shutil.rmtree(scratch, ignore_errors=True)
                self.settled.add(key)
                for older in entries.values():
                    _drop(older)
                return self._hold(entry)
        except OSError as error:
            shutil.rmtree(out, ignore_errors=True)
            raise explained_os_error(error, self.root, remedy="or set EXPORTER_CACHE.") from error

    def find(self, stage: str, key: str) -> Path | None:
        """The finished entry of a known key, or what a later run made in its place, or None."""
        folder = self.root / stage
        later = _entries(folder, key.partition(".")[0])
        for entry in (folder / key, *(later[number] for number in sorted(later, reverse=True))):
            if not entry.is_dir():
                continue
            try:
                self._hold(entry)
            except OSError:
                return entry  # in a cache that is not writable, which nothing is removed from
            if entry.is_dir():
                return entry
        return None

    def _hold(self, entry: Path) -> Path:
        """Keep an entry where it is for as long as this run goes on."""
        if entry not in self.held:
            file = _use_lock(entry).open("w")
            fcntl.flock(file, fcntl.LOCK_SH)
            self.held[entry] = file
        return entry


def _entries(folder: Path, key: str) -> dict[int, Path]:
    """What was made under a key, by how many times: `key`, `key.2`, `key.3` ..."""
    if not folder.is_dir():
        return {}
    name = re.compile(re.escape(key) + r"(?:\.(\d+))?")
    return {
        int(match[1] or 1): path
        for path in folder.iterdir()
        if (match := name.fullmatch(path.name)) and path.is_dir()
    }


def _drop(entry: Path) -> None:
    """Remove an entry unless a run holds it; the next redo will try again."""
    lock = _use_lock(entry)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        shutil.rmtree(entry, ignore_errors=True)
        lock.unlink(missing_ok=True)


def _use_lock(entry: Path) -> Path:
    return entry.with_name(f"{entry.name}.use.lock")


def explained_os_error(error: OSError, place: Path, *, remedy: str) -> Exception:
    """A full disk or missing rights as an OutputError; any other OSError as it is."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(
            str(place), "the disk is full", got=error.strerror, remedy=f"free some space, {remedy}"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return OutputError(
            str(error.filename or place),
            "must be writable",
            got=error.strerror,
            remedy=f"change its rights, {remedy}",
        )
    return error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`; the system frees it when the process dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sync_file(path: Path) -> None:
    """Flush a file or a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(directory: Path) -> None:
    """Flush every file below `directory`, then the directories."""
    for path in [*directory.rglob("*"), directory]:
        if not path.is_symlink():
            sync_file(path)
