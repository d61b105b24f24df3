"""Any machine with Python, onnxruntime and an SSH server: a Raspberry Pi, a Jetson, a phone.

`ssh://user@host:port`, as the system's OpenSSH client understands it: ~/.ssh/config, known hosts,
agents and jump hosts are the user's own. Nothing is asked; a key must let us in.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from exporter.devices.device import Device, DeviceKind, Missing
from exporter.devices.remote import RemoteDevice, last_line
from exporter.errors import DeviceMissing, ExporterError, InputError

# A device that is gone or hangs is noticed after the product of the last two.
_OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": "10",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
}
_FAILED = 255  # exit status of ssh when it is ssh that failed
_PLACE = re.compile(
    r"(?:[^@/\s-][^@/\s]*@)?(?:[^@/:\[\]\s-][^@/:\[\]\s]*|\[[0-9a-fA-F:.%]+\])(?::\d+)?"
)


class Ssh(RemoteDevice):
    """A machine with an SSH server.

    Attributes:
        place: `user@host:port`; user and port may be left to ssh.
    """

    def __init__(self, place: str, settings: Mapping[str, Any]) -> None:
        super().__init__(f"ssh://{place}", settings)
        self.place = place
        self._config = settings.get("ssh_config")

    def command(self, remote: str) -> Sequence[str]:
        """The ssh client."""
        options = [part for key, value in _OPTIONS.items() for part in ("-o", f"{key}={value}")]
        config = ["-F", str(self._config)] if self._config else []
        return ["ssh", "-T", *config, *options, f"ssh://{self.place}", remote]

    def unreached(self, status: int, stderr: str) -> ExporterError | None:
        """By what ssh printed."""
        if status != _FAILED:
            return None
        text = stderr.lower()
        where = self.traits.name
        host = self.place.rpartition("@")[2]
        if "identification has changed" in text:
            return DeviceMissing(
                where,
                "the host key must be the known one",
                got="another key: a new system on the device, or another machine in its place",
                remedy="if it is the device, remove the old key with "
                f"`ssh-keygen -R {_known_name(host)}` and connect once with "
                f"`ssh {self.traits.name}`.",
            )
        if "host key verification failed" in text:
            return DeviceMissing(
                where,
                "its host key must be known here",
                got="one never seen before",
                remedy=f"connect once with `ssh {self.traits.name}` and compare the key.",
            )
        if "permission denied" in text or "authentication fail" in text:
            return DeviceMissing(
                where,
                "a key must let us in without a question",
                got=last_line(stderr),
                remedy=f"run `{_copy_id(self.place)}`, or name the key in ~/.ssh/config.",
            )
        return DeviceMissing(
            where,
            "it must be reached",
            got=last_line(stderr) or "no answer",
            remedy="check that the device is on, its address and its port; "
            f"`ssh {self.traits.name}` must work.",
        )


def _copy_id(place: str) -> str:
    host, port = _split(place)
    return f"ssh-copy-id {f'-p {port} ' if port else ''}{host}"


def _known_name(place: str) -> str:
    """As known_hosts has it."""
    host, port = _split(place)
    return f"'[{host.strip('[]')}]:{port}'" if port not in ("", "22") else host


def _split(place: str) -> tuple[str, str]:
    found = re.fullmatch(r"(.*?)(?::(\d+))?", place)
    assert found is not None  # _PLACE
    return found[1], found[2] or ""


class SshKind(DeviceKind):
    """`ssh://user@host:port`."""

    name = "ssh"
    summary = "a machine with Python and onnxruntime, over ssh: milliseconds, answers"
    pattern = "ssh://user@host:port"

    def missing(self, option: str) -> tuple[Missing, ...]:
        """The client."""
        if shutil.which("ssh") is None:
            return (Missing("the OpenSSH client ssh", "apt-get install -y openssh-client"),)
        return ()

    def open(self, option: str, settings: Mapping[str, Any]) -> Device:
        """The machine, after one connection to it.

        Args:
            settings: `python`: command line of the interpreter there (python3); `tmp`: folder
                there for the job (the system's); `ssh_config`: a file instead of ~/.ssh/config.

        Raises:
            InputError: `option` is no place.
        """
        if not _PLACE.fullmatch(option):
            raise InputError(
                f"ssh://{option}",
                "must be ssh://user@host or ssh://user@host:port",
                remedy="name the machine, such as ssh://pi@raspberrypi.local.",
            )
        device = Ssh(option, settings)
        device.probe()
        return device


KIND = SshKind()
