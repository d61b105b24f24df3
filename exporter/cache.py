"""Finished stages by content hash: the same inputs never cost twice, a crash costs one stage.

A stage is keyed by everything that decides its result: its name, the content of its
inputs, its options, the source of this package and the versions of the libraries that
compute it. Its result is a directory. It is written beside, synced and renamed, so an
entry either is whole or is not there.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

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
    "Pillow",
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
        redone: keys that a fresh run has redone already.
    """

    root: Path
    fresh: bool = False
    redone: set[str] = field(default_factory=set, repr=False)

    def get_or_make(
        self,
        stage: str,
        rooms: tuple[str, ...],
        inputs: dict[str, Any],
        make: Callable[[Path, Path], None],
    ) -> Path:
        """The finished directory of a stage, made now if it is not there.

        Args:
            make: called as `make(out, scratch)`. `out` is a new empty directory to fill;
                `scratch` belongs to this key and outlives a crash, so a stage can resume from it.
                It is removed once the stage is finished.

        Raises:
            OutputError: the disk is full or the cache is not writable.
        """
        key = stage_key(stage, rooms, inputs)
        entry = self.root / stage / key
        scratch = self.root / stage / f"{key}.scratch"
        out = self.root / stage / f"{key}.new"
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self.root / stage / f"{key}.lock"):
                redo = self.fresh and key not in self.redone
                if entry.is_dir() and not redo:
                    os.utime(entry)
                    return entry
                if redo:
                    shutil.rmtree(scratch, ignore_errors=True)
                shutil.rmtree(out, ignore_errors=True)
                out.mkdir()
                scratch.mkdir(exist_ok=True)
                make(out, scratch)
                sync_directory(out)
                shutil.rmtree(entry, ignore_errors=True)
                out.rename(entry)
                sync_file(entry.parent)
                shutil.rmtree(scratch, ignore_errors=True)
                self.redone.add(key)
                return entry
        except OSError as error:
            shutil.rmtree(out, ignore_errors=True)
            raise explained_os_error(error, self.root, remedy="or set EXPORTER_CACHE.") from error

    def find(self, stage: str, key: str) -> Path | None:
        """The finished entry of a known key, or None."""
        entry = self.root / stage / key
        return entry if entry.is_dir() else None


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
