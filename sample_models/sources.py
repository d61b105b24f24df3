"""Source files that lie on every machine: Python's standard library and installed packages."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import sysconfig
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from exporter.errors import DataError

# Absent from some distributions (test suites), generated (encodings, topics, build settings),
# or not of the library: with them the same version would give different data elsewhere.
_SKIPPED = {
    "site-packages",
    "dist-packages",
    "__pycache__",
    "test",
    "tests",
    "idle_test",
    "encodings",
    "pydoc_data",
    "_vendor",
}


@dataclass(frozen=True)
class Document:
    """One source file: its path relative to where its library lies, and its text."""

    path: str
    text: str


def standard_library() -> list[Document]:
    """The standard library's modules, in order of their paths."""
    root = Path(sysconfig.get_path("stdlib"))
    return list(_read(root, sorted(root.rglob("*.py"))))


def package(name: str, distribution: str) -> list[Document]:
    """The modules of an installed package without its tests; nothing of it is imported.

    Args:
        name: what `import` calls it.
        distribution: what `pip install` calls it.

    Raises:
        DataError: it is not installed.
    """
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise DataError(
            f"package {distribution}",
            "must be installed for this sample",
            remedy='install the samples extra: pip install "exporter[samples]".',
        )
    root = Path(next(iter(found.submodule_search_locations)))
    return [
        Document(f"{name}/{document.path}", document.text)
        for document in _read(root, sorted(root.rglob("*.py")))
    ]


def distribution_version(distribution: str) -> str:
    """The installed version of a distribution, or "absent"."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def content_hash(documents: Iterable[Document]) -> str:
    """SHA-256 over paths and texts."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(f"{document.path}\0{document.text}\0".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _read(root: Path, paths: Iterable[Path]) -> Iterator[Document]:
    for path in paths:
        relative = path.relative_to(root)
        if any(part in _SKIPPED or part.startswith("config-") for part in relative.parts[:-1]):
            continue
        if relative.name.startswith("_sysconfigdata"):
            continue
        try:
            with tokenize.open(path) as file:  # honours the file's coding line
                text = file.read()
        except (SyntaxError, UnicodeDecodeError):
            continue
        yield Document(relative.as_posix(), text)
