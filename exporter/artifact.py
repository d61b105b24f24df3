"""Artifact: the directory that ships, its manifest of hashes, and how it appears at once."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.cache import explained_os_error, sha256_file, sync_directory, sync_file
from exporter.errors import ArtifactError, OutputError

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"  # beside the manifest, over its bytes
MODEL = "model/model.onnx"
SCHEMA = 1
MAX_MANIFEST_BYTES = 16 << 20


@dataclass(frozen=True)
class Artifact:
    """A finished artifact on disk.

    Attributes:
        directory: where it lies.
        manifest: the parsed manifest; `manifest["files"]` maps each relative path to
            `{"sha256": ..., "size_bytes": ...}`.
    """

    directory: Path
    manifest: dict[str, Any]

    @property
    def model_directory(self) -> Path:
        """The directory that holds model.onnx and what runs with it."""
        return self.directory / "model"


def write_manifest(directory: Path, content: dict[str, Any]) -> None:
    """Write `manifest.json` into `directory`, adding the hash and size of every other file."""
    files = {
        path.relative_to(directory).as_posix(): {
            "sha256": sha256_file(path),
            "size_bytes": path.stat().st_size,
        }
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path != directory / MANIFEST
    }
    text = json.dumps({"schema": SCHEMA, **content, "files": files}, indent=2, allow_nan=False)
    (directory / MANIFEST).write_text(text + "\n", encoding="utf-8")


def load_artifact(directory: Path | str) -> Artifact:
    """Read an artifact and prove that every file is what the manifest says, and none is more.

    Raises:
        ArtifactError: no manifest, a malformed one, a missing, changed, escaping or unnamed file.
    """
    artifact = read_artifact(directory)
    if MODEL not in artifact.manifest["files"]:
        raise ArtifactError(
            f"{directory}/{MANIFEST}", f"must name {MODEL}", remedy="export it again."
        )
    for name in artifact.manifest["files"]:
        prove_file(artifact, name)
    for name in unnamed_files(artifact):
        raise ArtifactError(
            f"{directory}/{name}",
            "is not named in the manifest",
            remedy="remove it, or do not trust the artifact.",
        )
    return artifact


def unnamed_files(artifact: Artifact) -> list[str]:
    """Whatever lies in the artifact's directory and that its manifest does not name."""
    found = []
    for path in sorted(artifact.directory.rglob("*")):
        name = path.relative_to(artifact.directory).as_posix()
        own = name in (MANIFEST, SIGNATURE) and path.is_file() and not path.is_symlink()
        folder = path.is_dir() and not path.is_symlink() and name != SIGNATURE
        if not (own or folder or name in artifact.manifest["files"]):
            found.append(name)
    return found


def read_artifact(directory: Path | str) -> Artifact:
    """Read an artifact's manifest; its files are not looked at.

    Raises:
        ArtifactError: no manifest, or a malformed one.
    """
    root = Path(directory)
    place = str(directory)
    path = root / MANIFEST
    if path.is_symlink():
        raise ArtifactError(
            f"{place}/{MANIFEST}", "must lie inside the artifact", remedy="do not trust it."
        )
    if not path.is_file():
        raise ArtifactError(
            place,
            f"must be an artifact with a {MANIFEST}",
            remedy="give the directory that `exporter export` printed.",
        )
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise ArtifactError(place, "manifest is larger than 16 MiB", remedy="export again.")
        manifest = strict_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(
            f"{place}/{MANIFEST}", "cannot be read", got=error.strerror, remedy="change its rights."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{place}/{MANIFEST}", "must be valid JSON", got=str(error), remedy="export again."
        ) from error
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or manifest.get("schema") != SCHEMA:
        raise ArtifactError(
            f"{place}/{MANIFEST}",
            f"must be of schema {SCHEMA}",
            got=manifest.get("schema") if isinstance(manifest, dict) else type(manifest).__name__,
            remedy="export again with this version.",
        )
    return Artifact(root, manifest)


def strict_json(text: str) -> Any:
    """JSON that every reader understands alike: no name stands twice, no number is NaN or infinite.

    Raises:
        ValueError: it is not.
        RecursionError: it is nested too deeply.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            raise ValueError("a name stands twice in one object")
        return made

    return json.loads(text, parse_constant=refuse, object_pairs_hook=distinct)


def prove_file(artifact: Artifact, name: str) -> int:
    """The bytes of one file that the manifest names, proved to have the hash it says.

    Raises:
        ArtifactError: the file is missing, changed, unreadable or outside the artifact.
    """
    path = artifact.directory / name
    place = f"{artifact.directory}/{name}"
    entry = artifact.manifest["files"][name]
    parts = Path(name).parts
    try:
        linked = any(
            artifact.directory.joinpath(*parts[:i]).is_symlink() for i in range(1, len(parts) + 1)
        )
        if Path(name).is_absolute() or ".." in parts or linked:
            raise ArtifactError(place, "must lie inside the artifact", remedy="do not trust it.")
        if not path.is_file():
            raise ArtifactError(
                place, "is named in the manifest and missing", remedy="export again."
            )
        if not isinstance(entry, dict) or sha256_file(path) != entry.get("sha256"):
            raise ArtifactError(
                place, "differs from the hash in the manifest", remedy="restore it or export again."
            )
        return path.stat().st_size
    except OSError as error:
        raise ArtifactError(
            place, "cannot be read", got=error.strerror, remedy="change its rights, or its name."
        ) from error


def check_output(out: Path) -> None:
    """Refuse an output directory that holds something else, before any work is done.

    Raises:
        OutputError: it exists and is not one of our artifacts, or cannot be written.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise OutputError(str(out), "must be a directory", remedy="choose another --out.")
    if out.is_dir() and any(out.iterdir()) and not _is_ours(out):
        raise OutputError(
            str(out),
            "exists and was not made by this tool",
            remedy="choose another --out, or remove it.",
        )
    parent = out.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            str(out), "cannot be created", got=error.strerror, remedy="choose another --out."
        ) from error
    if not os.access(parent, os.W_OK):
        raise OutputError(
            str(parent), "must be writable", remedy="change its rights or choose another --out."
        )


def _is_ours(directory: Path) -> bool:
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and "files" in manifest and "schema" in manifest


@contextmanager
def publishing(out: Path) -> Iterator[Path]:
    """Hold `out` against other runs; yield an empty directory that replaces it on success.

    The swap is two renames: at any crash either the old or the new artifact is whole, and the
    next run finishes a swap that was cut between them.

    Raises:
        OutputError: another run holds `out`, or the disk is full.
    """
    check_output(out)
    parent = out.absolute().parent
    lock = parent / f".{out.name}.lock"
    new = parent / f".{out.name}.new"
    old = parent / f".{out.name}.old"
    try:
        with _held(lock, out):
            _clear(out, new, old)
            new.mkdir()
            try:
                yield new
                sync_directory(new)
                if out.exists():
                    out.rename(old)
                new.rename(out)
                sync_file(parent)
            finally:
                _clear(out, new, old)
    except OSError as error:
        raise explained_os_error(error, out, remedy="or choose another --out.") from error


@contextmanager
def _held(lock: Path, out: Path) -> Iterator[None]:
    """Hold the lock file that lies at `lock`, not one that was unlinked while we opened it.

    Raises:
        OutputError: another run holds it.
    """
    while True:
        with lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise OutputError(
                    str(out),
                    "another run is writing it",
                    remedy="wait for that run, or choose another --out.",
                ) from error
            if not _lies_at(lock, file.fileno()):
                continue
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def _lies_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _clear(out: Path, new: Path, old: Path) -> None:
    """Undo a swap that was cut between its renames, then remove what is left of it."""
    if old.is_dir() and not out.exists():
        old.rename(out)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(new, ignore_errors=True)
