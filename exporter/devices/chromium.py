"""Chromium: where it is, and a user data directory that leaves no browser behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from exporter.devices.device import Missing

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
_SCANS = 5
_PLACE_LIMIT = 40  # characters


def find_chromium() -> str | None:
    """The browser that `CHROMIUM` names, else the first usual one, or None."""
    named = os.environ.get("CHROMIUM")
    if named:
        return shutil.which(named)
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None and sys.platform == "darwin" and Path(_MAC).is_file():
        return _MAC
    return found


def missing_chromium() -> tuple[Missing, ...]:
    """Chromium, where it is absent."""
    if find_chromium():
        return ()
    named = os.environ.get("CHROMIUM")
    return (
        Missing(
            f"Chromium at CHROMIUM={named}" if named else "Chromium",
            "apt-get install chromium (Debian) or brew install --cask chromium, "
            "or set CHROMIUM to the path of Chromium or Chrome",
        ),
    )


def has_sandbox() -> bool:
    """True unless this user is root, as whom Chromium's sandbox does not start."""
    return not (hasattr(os, "geteuid") and os.geteuid() == 0)


@contextmanager
def profile() -> Iterator[Path]:
    """An empty directory for a browser's data, settings and temporary files.

    Afterwards it is gone, and with it every process that was told to use it. They do not end with
    Node: playwright gives the browser a session of its own.
    """
    # The path of a Unix socket in it must stay below 108 bytes, or Chromium ends at once.
    usual = Path(tempfile.gettempdir()).resolve()
    place = usual if len(str(usual)) <= _PLACE_LIMIT else Path("/tmp").resolve()
    folder = Path(tempfile.mkdtemp(prefix="exporter-", dir=place))
    try:
        yield folder
    finally:
        _end_users(folder)
        shutil.rmtree(folder, ignore_errors=True)


def users(folder: Path) -> list[psutil.Process]:
    """Processes with `folder` in their command line or environment, and their children."""
    name, found = str(folder), set[psutil.Process]()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            told = [*process.cmdline(), *process.environ().values()]
            if any(name in value for value in told):
                found |= {process, *process.children(recursive=True)}
    return list(found)


def _end_users(folder: Path) -> None:
    for _ in range(_SCANS):  # one may have started another while it was looked for
        found = users(folder)
        if not found:
            return
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, timeout=5)
