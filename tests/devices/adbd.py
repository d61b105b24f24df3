"""A real adbd in a network of its own, and an adb server beside it that the client reaches.

adbd listens on every address at a fixed port, and the server looks for devices at fixed ports: both
live in a network namespace, so that nothing else on this machine sees or disturbs them. The client
speaks to the server through a socket file.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.devices.sshd import eventually

SERIAL = "127.0.0.1:5555"
ADBD = shutil.which("adbd") or shutil.which("adbd", path="/usr/sbin")


def absent() -> str:
    """Why there can be none here; "" when there can."""
    if ADBD is None or shutil.which("adb") is None:
        return "adbd is not installed: apt-get install -y -t bookworm-backports adb adbd"
    if os.geteuid():
        return "adbd needs root: sudo pytest tests/devices/test_adb.py"
    if subprocess.run(["unshare", "-n", "-m", "true"], capture_output=True).returncode:
        return "adbd needs a network namespace, which this container may not make: unshare -n"
    return ""


@dataclass(frozen=True)
class Bridge:
    """adbd and an adb server that run.

    Attributes:
        environment: for the client.
        tmp: TMPDIR of what runs through adbd.
        daemon: adbd.
    """

    environment: dict[str, str]
    tmp: Path
    daemon: psutil.Process

    def connect(self) -> None:
        """Wait until the server has the device."""
        assert eventually(lambda: "connected" in self.adb("connect", SERIAL))
        assert eventually(lambda: f"{SERIAL}\tdevice" in self.adb("devices"))

    def adb(self, *words: str) -> str:
        """What the client prints."""
        env = {**os.environ, **self.environment}
        return subprocess.run(["adb", *words], env=env, capture_output=True, text=True).stdout


@contextlib.contextmanager
def adbd() -> Iterator[Bridge]:
    """Both, with one device connected, stopped afterwards."""
    assert ADBD is not None
    with tempfile.TemporaryDirectory(prefix="adb-") as root:  # a socket's path must be short
        tmp = Path(root) / "tmp"
        tmp.mkdir()
        address = f"localfilesystem:{root}/server"
        env = {**os.environ, "HOME": root}
        server = f"exec adb -L {address} nodaemon server"
        script = f"ip link set lo up; TMPDIR={tmp} {ADBD} & {server}"
        with (Path(root) / "log").open("wb") as log:
            namespace = subprocess.Popen(
                ["unshare", "-n", "-m", "sh", "-c", script],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            bridge = Bridge({"ADB_SERVER_SOCKET": address}, tmp, _daemon(namespace.pid))
            # A client that finds no server starts one of its own, outside.
            assert eventually(lambda: _listens(f"{root}/server")), (Path(root) / "log").read_text()
            bridge.connect()
            yield bridge
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(namespace.pid, signal.SIGKILL)
            namespace.wait()


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


def _daemon(namespace: int) -> psutil.Process:
    def find() -> psutil.Process | None:
        children = psutil.Process(namespace).children(recursive=True)
        return next((child for child in children if child.name() == "adbd"), None)

    found = eventually(find)
    assert found is not None, "adbd did not start"
    return found
