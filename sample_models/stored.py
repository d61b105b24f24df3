"""Where trained samples are kept, and what makes one stale."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from exporter.cache import Cache, default_cache_directory, sha256_file
from sample_models.training import bf16_pays

_SHARED = ("sources.py", "splitting.py", "training.py", "muon.py")


def stored(
    name: str,
    source: Path,
    settings: dict[str, Any],
    make: Callable[[Path, Path], None],
    cache: Cache | None = None,
) -> Path:
    """The directory of a sample, made now unless the same code, data and versions made it.

    Args:
        name: the sample's name, a directory of the cache.
        source: the sample's own file.
        settings: JSON-ready sizes and content hashes of the data.
        make: as in `Cache.get_or_make`.
        cache: where samples lie; `samples` in the default cache.
    """
    cache = cache or Cache(default_cache_directory() / "samples")
    here = Path(__file__).parent
    code = {path.name: sha256_file(path) for path in (source, *(here / n for n in _SHARED))}
    return cache.get_or_make(name, (), {"code": code, "bf16": bf16_pays(), **settings}, make)
