"""Emulated devices that are really there: fetched once into the user's cache, or a skip."""

from __future__ import annotations

from functools import cache

import pytest

from exporter.devices.debian import fetch, has_apt
from exporter.devices.qemu_user import QemuUser
from exporter.devices.registry import kind_of, open_device
from exporter.errors import ExporterError
from exporter.progress import Silent


def device(name: str) -> QemuUser:
    """The device `name`, installed; skips the test where that cannot be."""
    reason = _why_not(name.partition(":")[0])
    if reason:
        pytest.skip(f"{reason} To have it: exporter devices install {name.partition(':')[0]}")
    opened = open_device(name)
    assert isinstance(opened, QemuUser)
    return opened


def counting(name: str) -> QemuUser:
    """The device `name`, which counts instructions; skips where there is no compiler."""
    opened = device(name)
    if opened.traits.cost is None:
        pytest.skip("nothing counts here. To have it: apt-get install gcc")
    return opened


@cache
def offline() -> str:
    """Why no package can be fetched, or ""."""
    if not has_apt():
        return "this machine has no apt-get."
    try:
        fetch(["gcc-12-base"], "arm64", dependencies=False)
    except ExporterError as error:
        return str(error)
    return ""


@cache
def _why_not(kind_name: str) -> str:
    kind, option = kind_of(kind_name)
    lacks = kind.missing(option)
    if not all(missing.installable for missing in lacks):
        return f"{', '.join(missing.what for missing in lacks)} is missing."
    try:
        kind.install(Silent())  # also the plugin, where a compiler came since
    except ExporterError as error:
        return str(error)
    return ""
