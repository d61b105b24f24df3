"""Devices behind adb: a real adbd where there is one, and what the client says without."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from exporter.devices import adb
from exporter.devices.device import Device, Job
from exporter.devices.python_device import PythonDevice
from exporter.devices.registry import open_device
from exporter.errors import (
    DeviceCpu,
    DeviceKilled,
    DeviceLost,
    DeviceMissing,
    DeviceTimeout,
    InputError,
)
from exporter.graph.session import open_run
from tests.devices.adbd import SERIAL, Bridge, absent, adbd
from tests.devices.ending import ending_of
from tests.devices.graphs import product
from tests.devices.sshd import left, runner
from tests.devices.test_devices import timed

needs_client = pytest.mark.skipif(
    shutil.which("adb") is None, reason="adb is not installed: apt-get install -y adb"
)


@pytest.fixture(scope="module")
def bridge() -> Iterator[Bridge]:
    """One adbd for the whole file."""
    if reason := absent():
        pytest.skip(reason)
    with pytest.MonkeyPatch.context() as patch, adbd() as running:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        yield running


@pytest.fixture(scope="module")
def settings(bridge: Bridge) -> dict[str, str]:
    """For a device behind it."""
    return {"python": sys.executable, "tmp": str(bridge.tmp)}


@pytest.fixture(scope="module")
def device(bridge: Bridge, settings: dict[str, str]) -> Device:
    """The device."""
    return open_device(f"adb:{SERIAL}", settings)


def test_answers_are_the_hosts_and_the_cost_is_in_ms(
    device: Device, bridge: Bridge, tmp_path: Path
) -> None:
    model = product(tmp_path / "m", 1500)  # its bytes hold every value that a terminal would change
    x = {"x": np.ones((2, 1500), np.float32)}
    ran = device.run(Job(model.directory, (x,), x), timeout_s=60)
    np.testing.assert_array_equal(ran.outputs[0]["y"], open_run(model)(x)["y"])
    assert device.traits.cost == "ms"
    assert 0 < min(ran.costs["run"]) < 1000
    assert left(bridge.tmp) == []


def test_models_are_timed_side_by_side(device: Device, bridge: Bridge, tmp_path: Path) -> None:
    assert isinstance(device, PythonDevice)
    timed(device, tmp_path)
    assert left(bridge.tmp) == []


def test_time_is_over(device: Device, bridge: Bridge, endless: Job) -> None:
    with pytest.raises(DeviceTimeout, match="not finished after 1 s"):
        device.run(endless, timeout_s=1)
    assert left(bridge.tmp) == []


@pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGKILL, DeviceKilled), (signal.SIGILL, DeviceCpu)]
)
def test_a_runner_that_is_killed(
    device: Device, bridge: Bridge, endless: Job, number: signal.Signals, kind: type
) -> None:
    error = ending_of(device, endless, lambda: runner(bridge.tmp).send_signal(number))
    assert type(error) is kind
    assert left(bridge.tmp) == []


def test_the_cable_is_pulled(device: Device, bridge: Bridge, endless: Job) -> None:
    def pull() -> None:
        runner(bridge.tmp)
        bridge.adb("disconnect", SERIAL)

    try:
        assert type(ending_of(device, endless, pull)) is DeviceLost
        assert left(bridge.tmp) == []
        with pytest.raises(
            DeviceMissing, match=rf"must be reached by adb, got .*{SERIAL}.*not found"
        ):
            device.run(endless, timeout_s=5)
    finally:
        bridge.connect()


def test_a_phone_has_no_python(bridge: Bridge) -> None:
    settings = {"python": "/system/bin/python3", "tmp": str(bridge.tmp)}
    with pytest.raises(
        DeviceMissing, match=r"`/system/bin/python3` must start Python 3\.10.*--python"
    ):
        open_device(f"adb:{SERIAL}", settings)


def test_an_unknown_serial(bridge: Bridge) -> None:
    with pytest.raises(DeviceMissing, match=rf"must know the device, got .*{SERIAL} \(device\)"):
        open_device("adb:strange")


def test_a_serial_is_asked_for(bridge: Bridge) -> None:
    with pytest.raises(InputError, match=rf"adb:SERIAL; take the serial .*{SERIAL}"):
        open_device("adb")


@needs_client
def test_the_server_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADB_SERVER_SOCKET", "localfilesystem:/nowhere/socket")
    with pytest.raises(DeviceMissing, match=r"adb devices: must list the devices, got .*daemon"):
        open_device("adb:serial")


LISTED = """List of devices attached
R58M123ABC             device usb:1-2 product:a model:Pixel_8_Pro device:husky transport_id:1
192.168.0.7:5555       offline transport_id:2
emulator-5554          unauthorized transport_id:3
0123456789             no permissions (user in plugdev group; are your udev rules wrong?); see [u]
"""


@needs_client
@pytest.mark.parametrize(
    ("serial", "message"),
    [
        ("192.168.0.7:5555", "it must answer, got offline; unplug it"),
        ("emulator-5554", "must trust this computer, got unauthorized; unlock it and allow USB"),
        ("0123456789", "got no permissions; run `apt-get install -y android-sdk"),
    ],
)
def test_a_device_that_is_not_ready(
    serial: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = adb.parse_devices(LISTED)
    assert listed["R58M123ABC"] == ("device", "Pixel 8 Pro")
    monkeypatch.setattr(adb, "_listed", lambda: listed)
    with pytest.raises(DeviceMissing, match=message):
        open_device(f"adb:{serial}")


def test_the_client_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(DeviceMissing, match="apt-get install -y adb"):
        open_device("adb:serial")


def test_the_model_is_its_title(
    bridge: Bridge, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = {SERIAL: ("device", "Pixel 8 Pro")}
    monkeypatch.setattr(adb, "_listed", lambda: listed)
    assert open_device(f"adb:{SERIAL}", settings).traits.title == "Pixel 8 Pro"
