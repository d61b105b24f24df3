"""A process that runs for a device: bounded in time, and gone with everything it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from exporter.errors import DeviceTimeout

_KEPT_BYTES = 64 << 10  # of what it printed to standard error


def run_process(
    command: Sequence[str],
    folder: Path,
    device: str,
    *,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """Run `command` in `folder` to its end; its exit status (-N for signal N) and standard error.

    It gets a session of its own, which is killed as a whole when the time is over, or when this
    process is interrupted.

    Args:
        env: its whole environment; None takes this process's.

    Raises:
        DeviceTimeout: it did not end in time.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            env=None if env is None else dict(env),
            start_new_session=True,
        )
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise overdue(device, timeout_s) from error
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        size = errors.seek(0, os.SEEK_END)
        errors.seek(max(0, size - _KEPT_BYTES))
        return status, errors.read().decode("utf-8", "replace")


def overdue(device: str, timeout_s: float) -> DeviceTimeout:
    """The error of a device that did not end in time."""
    return DeviceTimeout(
        f"{device}: not finished after {timeout_s:.0f} s, and stopped; "
        "give it more time (timeout_s in the profile, --timeout) or a smaller workload."
    )
