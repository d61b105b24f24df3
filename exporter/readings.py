"""The ledger of readings: which candidates of a model were judged on which test split.

Whoever exports, looks at the verdict, changes the recipe and exports again has chosen on the test
split, whatever the code does. The ledger lies in the cache directory and remembers each candidate,
so that the second one's report can say so.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from exporter.cache import explained_os_error

LEDGER = "readings.jsonl"
# Of the 64 hex digits of a candidate's hash, what a note shows.
SHORT_KEY = 12


def record_reading(root: Path, *, model: str, test: str, candidate: str) -> tuple[str, ...]:
    """Write down that a candidate is about to be judged on a test split; once for each candidate.

    The line is on the disk before this returns, so that a run that is killed while it scores has
    read the split all the same. A line that a crash cut short is as if it was never begun.

    Args:
        root: the cache directory.
        model: content hash of the source model.
        test: `split_hash` of the test split.
        candidate: content hash of the candidate's files, which another version of a library that
            builds the same files does not change.

    Returns:
        Hashes of the candidates of this model that were judged on this split before this one was
        for the first time, in order.

    Raises:
        OutputError: the disk is full or the ledger is not writable.
    """
    line = {"model": model, "test": test, "candidate": candidate}
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (root / LEDGER).open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            text = file.read()
            seen = _candidates(text, model, test)
            if candidate not in seen:
                cut_short = b"\n" if text and not text.endswith(b"\n") else b""
                file.write(cut_short + json.dumps(line).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
                return tuple(seen)
            return tuple(seen[: seen.index(candidate)])
    except OSError as error:
        raise explained_os_error(error, root, remedy="or set EXPORTER_CACHE.") from error


def split_hash(ids: Iterable[str]) -> str:
    """SHA-256 over the content hashes of a split's examples, whatever their order."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def readings_note(earlier: Sequence[str]) -> str | None:
    """What the report says of earlier readings; None when there were none."""
    if not earlier:
        return None
    times = "once" if len(earlier) == 1 else f"{len(earlier)} times"
    others = "another candidate" if len(earlier) == 1 else "other candidates"
    keys = ", ".join(key[:SHORT_KEY] for key in earlier)
    return (
        f"The test split has been read {times} before for {others} of this model ({keys}), so a "
        "pass is weaker evidence: the choice between them may have been made on test data."
    )


def _candidates(text: bytes, model: str, test: str) -> list[str]:
    """Candidates of a model that were judged on a split, each once, in order."""
    found: dict[str, None] = {}
    for raw in text.splitlines():
        try:
            line = json.loads(raw)
            if line["model"] == model and line["test"] == test:
                found[str(line["candidate"])] = None
        except (ValueError, LookupError, TypeError):
            continue  # cut short by a crash
    return list(found)
