"""The kinds of devices there are, and how a name such as `arm64:cortex-a76` finds one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from exporter.devices.device import Device, DeviceKind
from exporter.errors import DeviceMissing, InputError

# name -> module of this room whose KIND it is
KINDS = {
    "local": "local",
    "wasm": "wasm",
    "browser": "browser",
    "arm64": "arm64",
    "x86-64": "x86_64",
    "board": "board",
    "ssh": "ssh",
    "adb": "adb",
}


def kinds() -> list[DeviceKind]:
    """Every kind of device."""
    return [kind_of(name)[0] for name in KINDS]


def kind_of(name: str) -> tuple[DeviceKind, str]:
    """The kind and the option that `name` asks for, such as (arm64, "cortex-a76").

    A URL such as `ssh://pi@board` asks for the kind of its scheme, with all the rest as the option.

    Raises:
        InputError: there is no such device or option.
    """
    head, _, option = name.partition(":")
    option = option.removeprefix("//")  # of a URL, whose scheme is the kind
    if head not in KINDS:
        raise _unknown(name, head, list(KINDS))
    kind: DeviceKind = import_module(f"exporter.devices.{KINDS[head]}").KIND
    if kind.options and not option:
        option = kind.options[0]
    if kind.options and option not in kind.options:
        raise _unknown(name, option, [f"{head}:{known}" for known in kind.options])
    return kind, option


def open_device(name: str, settings: Mapping[str, Any] | None = None) -> Device:
    """The device that `name` asks for, ready.

    Raises:
        InputError: there is no such device.
        DeviceMissing: it is not usable here; the message says what would make it so.
    """
    kind, option = kind_of(name)
    lacks = kind.missing(option)
    if lacks:
        raise DeviceMissing(
            name,
            "cannot be used here: " + ", ".join(m.what for m in lacks) + " is missing",
            remedy="run " + " and ".join(dict.fromkeys(m.remedy for m in lacks)) + ".",
        )
    return kind.open(option, settings or {})


def _unknown(name: str, part: str, known: list[str]) -> InputError:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return InputError(
        name,
        f"unknown device '{part}'",
        remedy=f"{hint}known: {', '.join(known)}; see exporter devices.",
    )
