"""A machine behind a real sshd on loopback: what comes back, and what is left there."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
import psutil
import pytest

from exporter.devices import remote
from exporter.devices.device import Device, Job
from exporter.devices.host import host_features, host_isa
from exporter.devices.python_device import PythonDevice
from exporter.devices.registry import open_device
from exporter.errors import (
    DeviceCpu,
    DeviceDisk,
    DeviceError,
    DeviceKilled,
    DeviceLost,
    DeviceMissing,
    DeviceRefused,
    DeviceTimeout,
)
from exporter.graph.session import open_run
from exporter.target import Workload
from tests.devices.ending import X, ending_of
from tests.devices.graphs import cached_decoder, listening, product
from tests.devices.sshd import ABSENT, Server, free_port, small_disk, sshd
from tests.devices.test_devices import timed


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One sshd for the whole file."""
    if ABSENT:
        pytest.skip(ABSENT)
    with sshd(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture(scope="module")
def device(server: Server) -> Device:
    """The machine behind it."""
    return open_device(server.name, server.settings)


def test_the_device_tells_what_it_is(device: Device, server: Server) -> None:
    traits = device.traits
    assert traits.name == server.name
    assert (traits.isa, traits.features) == (host_isa(), host_features())
    assert (traits.cost, traits.emulated) == ("ms", False)
    assert traits.title


def test_answers_are_the_hosts_and_the_cost_is_in_ms(
    device: Device, server: Server, tmp_path: Path
) -> None:
    model = product(tmp_path / "m", 256)
    calls = (X, {"x": np.ones((3, 256), np.float32)})
    ran = device.run(Job(model.directory, calls, X, repeats=4), timeout_s=60)
    for call, outputs in zip(calls, ran.outputs, strict=True):
        np.testing.assert_array_equal(outputs["y"], open_run(model)(call)["y"])
    assert len(ran.costs["run"]) == 4
    assert 0 < min(ran.costs["run"]) < 1000
    assert (ran.peak_mib or 0) > 1
    assert ran.facts["cores"] == os.cpu_count()
    assert server.left() == []


def test_a_language_model_writes_there_what_it_writes_here(device: Device, tmp_path: Path) -> None:
    model = cached_decoder(tmp_path / "m")
    workload = Workload(prompt_length=3, decode_tokens=2)
    job = Job(model.directory, feeds={"input_ids": np.array([[3, 1, 4]])}, workload=workload)
    there, here = (d.run(job, timeout_s=60) for d in (device, open_device("local")))
    np.testing.assert_array_equal(there.tokens, here.tokens)
    assert sorted(there.costs) == ["decode", "prefill"]


def test_models_are_timed_side_by_side(device: Device, server: Server, tmp_path: Path) -> None:
    assert isinstance(device, PythonDevice)
    timed(device, tmp_path)
    assert server.left() == []


def test_a_model_that_the_runtime_refuses(device: Device, server: Server, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\x07not a model")
    with pytest.raises(DeviceRefused, match="ssh://"):
        device.run(Job(tmp_path), timeout_s=60)
    assert server.left() == []


def test_time_is_over(device: Device, server: Server, endless: Job) -> None:
    with pytest.raises(DeviceTimeout, match="not finished after 1 s"):
        device.run(endless, timeout_s=1)
    assert server.left() == []


def test_time_is_over_before_the_job_has_arrived(
    device: Device, server: Server, endless: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_the_head_only(stream: IO[bytes], head: bytes, sent: list[Path]) -> None:
        stream.write(head)
        stream.flush()

    monkeypatch.setattr(remote, "_write", write_the_head_only)
    with pytest.raises(DeviceTimeout):
        device.run(endless, timeout_s=0.5)
    assert server.left() == []


def test_a_runner_that_hangs(device: Device, server: Server, endless: Job) -> None:
    error = ending_of(device, endless, lambda: server.runner().suspend(), timeout_s=5)
    assert type(error) is DeviceTimeout
    assert server.left() == []


def test_a_device_that_no_longer_answers(
    device: Device, server: Server, endless: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "GRACE_S", 0.5)
    frozen: list[psutil.Process] = []

    def freeze() -> None:
        server.runner()
        frozen.extend(server.sessions())
        for process in frozen:
            process.suspend()

    error = ending_of(device, endless, freeze, timeout_s=4)
    assert type(error) is DeviceTimeout
    # the device stops what runs on it by its own clock: its sshd is still frozen
    assert server.left() == []
    for process in frozen:
        process.kill()


@pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGKILL, DeviceKilled), (signal.SIGILL, DeviceCpu)]
)
def test_a_runner_that_is_killed(
    device: Device, server: Server, endless: Job, number: signal.Signals, kind: type
) -> None:
    error = ending_of(device, endless, lambda: server.runner().send_signal(number))
    assert type(error) is kind
    assert server.left() == []


def test_even_the_carrier_is_killed(device: Device, server: Server, endless: Job) -> None:
    error = ending_of(device, endless, lambda: _parent(server.runner()).kill())
    assert type(error) is DeviceKilled
    assert server.left() == []


def _parent(process: psutil.Process) -> psutil.Process:
    parent = process.parent()
    assert parent is not None
    return parent


def test_the_connection_breaks(device: Device, server: Server, endless: Job) -> None:
    def cut() -> None:
        server.runner()
        for process in server.sessions():
            process.kill()

    error = ending_of(device, endless, cut)
    assert type(error) is DeviceLost, error
    assert server.left() == []


def test_an_interrupted_run_leaves_nothing(server: Server, endless: Job) -> None:
    code = (
        "import sys, pickle; from exporter.devices.registry import open_device; "
        "name, settings, job = pickle.load(sys.stdin.buffer); "
        "open_device(name, settings).run(job, timeout_s=60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, preexec_fn=listening
    )
    assert process.stdin is not None
    process.stdin.write(pickle.dumps((server.name, server.settings, endless)))
    process.stdin.close()
    server.runner()
    process.send_signal(signal.SIGINT)
    process.wait(10)
    assert server.left() == []


@pytest.mark.parametrize("size_kib", [64, 1500])
def test_the_disk_is_full(server: Server, tmp_path: Path, size_kib: int) -> None:
    """Before the job is there, and when the runner writes what the model answered."""
    disk = server.root / f"disk{size_kib}"
    disk.mkdir()
    model = product(tmp_path / "m", 256)
    job = Job(model.directory, ({"x": np.ones((1000, 256), np.float32)},))
    with small_disk(disk, size_kib) as mounted:
        if not mounted:
            pytest.skip("a small disk can only be mounted by root: sudo pytest tests/devices")
        device = open_device(server.name, {**server.settings, "tmp": str(disk)})
        with pytest.raises(DeviceDisk):
            device.run(job, timeout_s=60)
        assert list(disk.iterdir()) == []
    assert server.left() == []


def test_a_python_without_onnxruntime(server: Server, tmp_path: Path) -> None:
    bare = [sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")]
    subprocess.run(bare, check=True)
    python = str(tmp_path / "bare/bin/python")
    with pytest.raises(DeviceMissing, match=f"{python} -m pip install onnxruntime numpy.*--python"):
        open_device(server.name, {**server.settings, "python": python})


@pytest.mark.parametrize("python", ["/nowhere/python3", "echo 'exporter needs Python' >&2; false"])
def test_no_python(server: Server, python: str) -> None:
    with pytest.raises(DeviceMissing, match=r"Python 3\.10 or newer"):
        open_device(server.name, {**server.settings, "python": python})


def test_a_folder_that_is_not_there(server: Server, endless: Job) -> None:
    device = open_device(server.name, {**server.settings, "tmp": "/nowhere"})
    with pytest.raises(DeviceError, match="/nowhere"):
        device.run(endless, timeout_s=10)


def test_login_scripts_may_print(server: Server, endless: Job) -> None:
    python = f"echo welcome; echo to the board >&2; {sys.executable}"
    device = open_device(server.name, {**server.settings, "python": python})
    assert len(device.run(replace(endless, repeats=2), timeout_s=30).costs["run"]) == 2


def test_no_one_listens(server: Server) -> None:
    with pytest.raises(DeviceMissing, match="refused"):
        open_device(f"ssh://127.0.0.1:{free_port()}", server.settings)


def test_an_unknown_host(server: Server) -> None:
    with pytest.raises(DeviceMissing, match="resolve"):
        open_device("ssh://nowhere.invalid", server.settings)


def _changed(server: Server, tmp_path: Path, old: str, new: str) -> dict[str, str]:
    """Settings with a client configuration in which `old` is `new`."""
    text = server.config.read_text()
    assert old in text
    (tmp_path / "ssh_config").write_text(text.replace(old, new))
    return {**server.settings, "ssh_config": str(tmp_path / "ssh_config")}


def test_a_host_key_never_seen(server: Server, tmp_path: Path) -> None:
    known = str(server.root / "known_hosts")
    with pytest.raises(DeviceMissing, match="connect once with `ssh ssh://"):
        open_device(server.name, _changed(server, tmp_path, known, "/dev/null"))


def test_another_host_key(server: Server, tmp_path: Path) -> None:
    known = server.root / "known_hosts"
    wrong = (server.root / "stranger.pub").read_text()
    (tmp_path / "wrong").write_text(f"[127.0.0.1]:{server.port} {wrong}")
    settings = _changed(server, tmp_path, str(known), str(tmp_path / "wrong"))
    with pytest.raises(DeviceMissing, match=r"ssh-keygen -R '\[127.0.0.1\]:"):
        open_device(server.name, settings)


def test_a_refused_key(server: Server, tmp_path: Path) -> None:
    user, stranger = str(server.root / "user"), str(server.root / "stranger")
    with pytest.raises(DeviceMissing, match="ssh-copy-id -p"):
        open_device(server.name, _changed(server, tmp_path, user, stranger))
