"""A real sshd on loopback: own keys, own configuration, an unprivileged port."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin")
ABSENT = (
    "the OpenSSH server is not installed: apt-get install -y openssh-server openssh-client"
    if SSHD is None or shutil.which("ssh") is None
    else ""
)


T = TypeVar("T")


@dataclass(frozen=True)
class Server:
    """An sshd that runs.

    Attributes:
        root: folder with its configuration and keys.
        tmp: TMPDIR of whoever logs in.
        port: on 127.0.0.1.
        config: for the client, which takes its key and known hosts from it.
        process: the listener.
    """

    root: Path
    tmp: Path
    port: int
    config: Path
    process: subprocess.Popen[bytes]

    @property
    def name(self) -> str:
        """Of the device."""
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}"

    @property
    def settings(self) -> dict[str, str]:
        """For a device on it."""
        return {"ssh_config": str(self.config), "python": sys.executable}

    def sessions(self) -> list[psutil.Process]:
        """The sshd processes of open connections."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if "sshd" in _name(child)]

    def started(self) -> list[psutil.Process]:
        """What runs in sessions on it, also what outlived one."""
        return started(self.tmp)

    def runner(self) -> psutil.Process:
        """The runner's process, once there is one."""
        return runner(self.tmp)

    def left(self) -> list[str]:
        """What jobs left on the device a moment after they ended."""
        return left(self.tmp)


def started(tmp: Path) -> list[psutil.Process]:
    """Processes whose TMPDIR is `tmp` or in it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            within = process.environ().get("TMPDIR", "").startswith(str(tmp))
            if within and process.name() not in ("sshd", "adbd"):
                found.append(process)
    return found


def runner(tmp: Path) -> psutil.Process:
    """The runner among them, once it works on its model."""

    def find() -> psutil.Process | None:
        for process in started(tmp):
            with contextlib.suppress(psutil.Error):
                if any("runpy" in part for part in process.cmdline()):
                    loaded = any("onnxruntime" in m.path for m in process.memory_maps())
                    return process if loaded else None
        return None

    found = eventually(find)
    assert found is not None, "no runner was started"
    return found


def left(tmp: Path) -> list[str]:
    """Files in `tmp` and processes of it, after a moment to end."""

    def names() -> list[str]:
        return [p.name for p in tmp.iterdir()] + [_name(p) for p in started(tmp)]

    eventually(lambda: not names())
    return names()


def eventually(find: Callable[[], T], seconds: float = 10) -> T:
    """The first true answer of `find`, or the last one after `seconds`."""
    end = time.monotonic() + seconds
    while not (found := find()) and time.monotonic() < end:
        time.sleep(0.02)
    return found


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return process.name()
    return ""


@contextlib.contextmanager
def sshd(root: Path) -> Iterator[Server]:
    """A server with its files in `root`, stopped afterwards with all its sessions."""
    assert SSHD is not None
    for name in ("host", "user", "stranger"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", root / name]
        subprocess.run(command, check=True)
    shutil.copyfile(root / "user.pub", root / "authorized_keys")
    tmp = root / "tmp"
    tmp.mkdir()
    port = free_port()
    host = (root / "host.pub").read_text()
    (root / "known_hosts").write_text(f"[127.0.0.1]:{port} {host}")
    (root / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {root}/host\nPidFile none\nUsePAM no\n"
        f"AuthorizedKeysFile {root}/authorized_keys\nStrictModes no\nPermitRootLogin yes\n"
        f"PasswordAuthentication no\nKbdInteractiveAuthentication no\nSetEnv TMPDIR={tmp}\n"
    )
    config = root / "ssh_config"
    config.write_text(
        f"IdentityFile {root}/user\nIdentitiesOnly yes\nIdentityAgent none\n"
        f"UserKnownHostsFile {root}/known_hosts\nGlobalKnownHostsFile /dev/null\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where it gives up its privileges
    with (root / "sshd.log").open("wb") as log:
        process = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", root / "sshd_config"], stdin=subprocess.DEVNULL, stderr=log
        )
    server = Server(root, tmp, port, config, process)
    try:
        assert eventually(lambda: _listens(port)), (root / "sshd.log").read_text()
        yield server
    finally:
        for child in [*server.sessions(), *server.started()]:
            with contextlib.suppress(psutil.Error):
                child.send_signal(signal.SIGKILL)
        process.kill()
        process.wait()


@contextlib.contextmanager
def small_disk(folder: Path, size_kib: int) -> Iterator[bool]:
    """A disk of `size_kib` at `folder`; False where this user may not mount one."""
    options = ["-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", str(folder)]
    mounted = subprocess.run(["mount", *options], capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def free_port() -> int:
    """A port that no one listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
