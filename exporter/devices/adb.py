"""Android devices and boards behind the Android Debug Bridge: `adb:SERIAL`.

Android has no Python of its own, and PyPI has no onnxruntime for it. What works without root is
Termux and its SSH server: there `pkg install openssh python-numpy python-onnxruntime` and `sshd`,
here `adb forward tcp:8022 tcp:8022` and the device `ssh://127.0.0.1:8022`.

This kind of device is for an interpreter that `adb shell` itself can start, named by
settings["python"]: on boards with an adbd and an ordinary Linux; in a chroot after `adb root`; or
that of a debuggable app by `run-as`, with settings["tmp"] in that app's own files. Termux from the
stores is not debuggable.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from exporter.devices.device import Device, DeviceKind, Missing
from exporter.devices.remote import RemoteDevice, last_line
from exporter.errors import DeviceMissing, ExporterError, InputError

_FOLDER = "/data/local/tmp"  # the one place on Android that `adb shell` may write and run from
_LIST_S = 20.0
_USABLE = "device"
# State that `adb devices` tells -> (what the device must be, what makes it so).
_REMEDIES = {
    "unauthorized": (
        "it must trust this computer",
        "unlock it and allow USB debugging in the dialog on its screen.",
    ),
    "authorizing": ("it must trust this computer", "wait a moment, and run again."),
    "connecting": ("it must be connected", "wait a moment, and run again."),
    "offline": (
        "it must answer",
        "unplug it and plug it in again, or run `adb reconnect`; then `adb devices` "
        "must show it as 'device'.",
    ),
    "no permissions": (
        "this user must have access to its USB port",
        "run `apt-get install -y android-sdk-platform-tools-common`, join the group plugdev, "
        "and plug it in again.",
    ),
    "recovery": ("it must have started Android", "run `adb reboot`."),
    "sideload": ("it must have started Android", "run `adb reboot`."),
    "bootloader": ("it must have started Android", "run `fastboot reboot`."),
}
_FAILED = re.compile(r"^(?:adb|error): ", re.MULTILINE)  # how adb itself complains


class Adb(RemoteDevice):
    """A device that adb knows.

    Attributes:
        serial: as `adb devices` tells it.
    """

    def __init__(self, serial: str, settings: Mapping[str, Any]) -> None:
        super().__init__(f"adb:{serial}", settings, tmp=_FOLDER)
        self.serial = serial

    def command(self, remote: str) -> Sequence[str]:
        """`adb shell` without a terminal, which would change the bytes."""
        return ["adb", "-s", self.serial, "shell", "-T", remote]

    def unreached(self, status: int, stderr: str) -> ExporterError | None:
        """By what adb printed."""
        if not _FAILED.search(stderr):
            return None
        return DeviceMissing(
            self.traits.name,
            "it must be reached by adb",
            got=last_line(stderr),
            remedy=f"`adb -s {self.serial} shell true` must work.",
        )


class AdbKind(DeviceKind):
    """`adb:SERIAL`."""

    name = "adb"
    summary = "an Android device with a Python and onnxruntime: milliseconds, answers"
    pattern = "adb:SERIAL"

    def missing(self, option: str) -> tuple[Missing, ...]:
        """The client."""
        if shutil.which("adb") is None:
            return (Missing("the Android Debug Bridge adb", "apt-get install -y adb"),)
        return ()

    def open(self, option: str, settings: Mapping[str, Any]) -> Device:
        """The device, after one connection to it.

        Args:
            settings: `python`: command line of the interpreter there (python3), such as `run-as
                com.termux /data/data/com.termux/files/usr/bin/python3`; `tmp`: folder there for
                the job (/data/local/tmp).

        Raises:
            InputError: `option` is no serial.
        """
        if not re.fullmatch(r"[^\s-]\S*", option):
            raise InputError(
                f"adb:{option}",
                "must be adb:SERIAL",
                remedy=f"take the serial from `adb devices`: {_connected()}.",
            )
        listed = _listed()
        if option not in listed:
            raise DeviceMissing(
                f"adb:{option}",
                "adb must know the device",
                got=_connected(listed),
                remedy="plug it in and allow USB debugging in its developer options, or run "
                "`adb connect HOST:PORT`.",
            )
        state, model = listed[option]
        if state != _USABLE:
            rule, remedy = _REMEDIES.get(state, ("it must be usable", "see `adb devices`."))
            raise DeviceMissing(f"adb:{option}", rule, got=state, remedy=remedy)
        device = Adb(option, settings)
        device.probe()
        device.traits = replace(device.traits, title=model or device.traits.title)
        return device


def _listed() -> dict[str, tuple[str, str]]:
    """Serial -> state and model ("" where it does not tell) of what adb knows."""
    try:
        done = subprocess.run(
            ["adb", "devices", "-l"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LIST_S,
        )
    except subprocess.TimeoutExpired as error:
        raise DeviceMissing(
            "adb devices",
            f"must answer within {_LIST_S:.0f} s",
            remedy="run `adb kill-server` and try again.",
        ) from error
    if done.returncode:
        raise DeviceMissing(
            "adb devices",
            "must list the devices",
            got=last_line(done.stderr) or f"exit code {done.returncode}",
            remedy="run `adb start-server`, and see what it says.",
        )
    return parse_devices(done.stdout)


def parse_devices(text: str) -> dict[str, tuple[str, str]]:
    """Serial -> state and model ("" where it does not tell), from `adb devices -l`."""
    found = {}
    for line in text.splitlines():
        serial, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        # The state is a word, or words with a reason: "no permissions (...); see [...]".
        state = next((s for s in _REMEDIES if rest.startswith(s)), rest.partition(" ")[0])
        if not serial or not rest or line.startswith(("*", "List of")):
            continue
        model = re.search(r"\bmodel:(\S+)", rest)
        found[serial] = (state, model[1].replace("_", " ") if model else "")
    return found


def _connected(listed: Mapping[str, tuple[str, str]] | None = None) -> str:
    known = _listed() if listed is None else listed
    return ", ".join(f"{serial} ({state})" for serial, (state, _) in known.items()) or "none"


KIND = AdbKind()
