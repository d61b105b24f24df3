"""Wheels for another machine: exact versions, checked by their hashes."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

from exporter.devices.device import Missing
from exporter.devices.store import downloads
from exporter.errors import DeviceError, DeviceMissing

# What Debian's C library (2.31 and later) can load.
_PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")


def missing_pip() -> tuple[Missing, ...]:
    """pip if it is not there."""
    if _pip() is None:
        return (Missing("pip", f"{sys.executable} -m ensurepip"),)
    return ()


def fetch_wheels(requirements: Path, machine: str, python: str) -> list[Path]:
    """The wheels that `requirements` (versions and sha256 hashes) name, without what they need.

    Args:
        machine: such as `aarch64`.
        python: such as `3.11`.

    Returns:
        files in the user's cache; pip takes those that are there and checks them again.

    Raises:
        DeviceMissing: there is no pip.
        DeviceError: a download failed, or is not what its hash says.
    """
    pip = _pip()
    if pip is None:
        raise DeviceMissing(
            "devices", "pip is needed", remedy=f"run {sys.executable} -m ensurepip."
        )
    abi = f"cp{python.replace('.', '')}"
    folder = downloads() / f"wheels-{machine}-{abi}"
    command = [*pip, "download", "--disable-pip-version-check", "--no-input", "--no-deps"]
    command += ["--require-hashes", "-r", str(requirements), "-d", str(folder)]
    command += ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    for one in (abi, "abi3", "none"):
        command += ["--abi", one]
    for platform in _PLATFORMS:
        command += ["--platform", f"{platform}_{machine}"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise DeviceError(
            f"pip download ({machine}, Python {python}): {(errors or [done.stderr])[0][:500]}; "
            "check the connection and run it again."
        )
    names = re.findall(r"^([\w.-]+)==([\w.]+)", requirements.read_text("utf-8"), re.MULTILINE)
    return [next(folder.glob(f"{name}-{version}-*.whl")) for name, version in names]


def _pip() -> list[str] | None:
    """The command of pip: this Python's, else one on the path."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    found = shutil.which("pip3") or shutil.which("pip")
    return [found] if found else None
