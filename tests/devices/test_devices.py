"""What every device that runs runner.py has in common, on this machine."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from rich.console import Console

from exporter.devices import wire
from exporter.devices.device import Job
from exporter.devices.process import run_process
from exporter.devices.python_device import PythonDevice
from exporter.devices.registry import kind_of, kinds, open_device
from exporter.display import progress_for
from exporter.errors import (
    DeviceCpu,
    DeviceDisk,
    DeviceError,
    DeviceKilled,
    DeviceRefused,
    DeviceTimeout,
    InputError,
)
from exporter.graph.session import open_run
from exporter.target import Workload
from tests.devices.graphs import cached_decoder, product

X = {"x": np.arange(8, dtype=np.float32)[None]}


def test_answers_are_the_hosts_and_the_cost_is_taken_after_one_run(tmp_path: Path) -> None:
    model = product(tmp_path / "m", 8)
    calls = (X, {"x": np.ones((3, 8), np.float32)})
    ran = open_device("local").run(Job(model.directory, calls, X, repeats=4), timeout_s=60)
    for call, outputs in zip(calls, ran.outputs, strict=True):
        np.testing.assert_array_equal(outputs["y"], open_run(model)(call)["y"])
    assert list(ran.costs) == ["run"]
    assert len(ran.costs["run"]) == 4
    assert (ran.load_cost or 0) > 0
    assert (ran.peak_mib or 0) > 1
    assert (ran.heap_mib or 0) > 0
    assert ran.classes == {}  # nobody counted


def test_a_log_tells_the_two_models_of_a_device_apart(tmp_path: Path) -> None:
    file = io.StringIO()
    shown = progress_for(Console(file=file))
    for name, size in (("candidate", 8), ("reference", 512)):
        job = Job(product(tmp_path / name, size).directory, (), None)
        open_device("local").run(job, timeout_s=60, progress=shown)
    first, second = file.getvalue().splitlines()
    assert first.endswith("MiB model on local ...")
    assert "the 1 MiB model" in second
    assert first != second


def test_a_language_model_reads_and_writes_with_its_cache(tmp_path: Path) -> None:
    model = cached_decoder(tmp_path / "m")
    prompt = np.array([[3, 1, 4]])
    workload = Workload(prompt_length=3, decode_tokens=2)
    ran = open_device("local").run(
        Job(model.directory, feeds={"input_ids": prompt}, workload=workload), timeout_s=60
    )
    assert sorted(ran.costs) == ["decode", "prefill"]
    ids = prompt
    for step in range(3):  # greedy, the whole text anew each time
        logits = open_run(model)({"input_ids": ids})["logits"][:, -1]
        np.testing.assert_allclose(ran.logits[step], logits, atol=1e-5)
        ids = np.concatenate([ids, logits.argmax(-1)[:, None]], axis=1)
    np.testing.assert_array_equal(ran.tokens, ids[:, 3:])


def test_a_model_that_the_runtime_refuses(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\x07not a model")
    with pytest.raises(DeviceRefused, match="local: "):
        open_device("local").run(Job(tmp_path), timeout_s=60)


def test_time_is_over(tmp_path: Path) -> None:
    model = product(tmp_path / "m", 8)
    with pytest.raises(DeviceTimeout, match="not finished after 0 s"):
        open_device("local").run(Job(model.directory), timeout_s=0.01)


@pytest.mark.parametrize("ends", [False, True])
def test_what_a_process_started_is_gone_with_it(tmp_path: Path, ends: bool) -> None:
    """Also when it ended by itself."""
    child = "import subprocess, sys; p = subprocess.Popen(['sleep', '77']); "
    child += "open('child', 'w').write(str(p.pid)); " + ("" if ends else "p.wait()")
    command = [sys.executable, "-c", child]
    if ends:
        assert run_process(command, tmp_path, "d", timeout_s=60)[0] == 0
    else:
        with pytest.raises(DeviceTimeout):
            run_process(command, tmp_path, "d", timeout_s=2)
    left = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 10
    while psutil.pid_exists(left) and psutil.Process(left).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "it still runs"
        time.sleep(0.05)


def timed(device: PythonDevice, folder: Path) -> None:
    """What every device with real time does with two models and with one it cannot open."""
    models = {"small": product(folder / "s", 8), "large/one": product(folder / "l", 1500)}
    directories = {name: model.directory for name, model in models.items()}
    x = {"x": np.ones((1, 8), np.float32)}
    with pytest.raises(DeviceError, match=f"{device.traits.name}: .*dimension"):
        device.time(directories, x, Workload(), threads=1, rounds=5, timeout_s=60)
    models["small"] = product(folder / "same", 1500)
    directories = {name: model.directory for name, model in models.items()}
    x = {"x": np.ones((1, 1500), np.float32)}
    times = device.time(directories, x, Workload(), threads=1, rounds=8, openings=2, timeout_s=60)
    assert {name: list(phases) for name, phases in times.items()} == {
        "small": ["run"],
        "large/one": ["run"],
    }
    assert all(len(phases["run"]) == 8 for phases in times.values())
    assert all(0 < ms < 1000 for phases in times.values() for ms in phases["run"])


def test_models_are_timed_side_by_side(tmp_path: Path) -> None:
    device = open_device("local")
    assert isinstance(device, PythonDevice)
    timed(device, tmp_path)


def test_time_that_is_not_time_is_not_taken(tmp_path: Path) -> None:
    device = open_device("local")
    assert isinstance(device, PythonDevice)
    device.traits = dataclasses.replace(device.traits, cost="instructions")
    with pytest.raises(DeviceError, match="emulated"):
        device.time({}, {}, Workload(), threads=1, rounds=5, timeout_s=60)


def test_a_prompt_is_timed_as_long_as_the_context_of_all_models_holds(tmp_path: Path) -> None:
    model = cached_decoder(tmp_path / "m")
    (model.directory / "config.json").write_text(json.dumps({"n_positions": 20}))
    workload = Workload(prompt_length=100, decode_tokens=4)
    (tmp_path / "job").mkdir()
    feeds = {"input_ids": np.ones((1, 5), np.int64)}
    wire.pack_timing({"m": model.directory}, feeds, workload, tmp_path / "job", threads=1, rounds=5)
    device = open_device("local")
    assert isinstance(device, PythonDevice)
    device.execute(tmp_path / "job", timeout_s=60)
    ran = json.loads((tmp_path / "job/result.json").read_text())["workload"]
    assert ran["prompt_length"] + ran["decode_tokens"] < 20
    assert sorted(wire.unpack_timing(tmp_path / "job", "local")["m"]) == ["decode", "prefill"]


@pytest.mark.parametrize(
    ("status", "stderr", "kind"),
    [
        (137, "", DeviceKilled),
        (-9, "", DeviceKilled),
        (132, "", DeviceCpu),
        (-4, "", DeviceCpu),
        (1, "OSError: [Errno 28] No space left on device", DeviceDisk),
        (139, "Segmentation fault", DeviceError),
        (3, "", DeviceError),
    ],
)
def test_every_way_to_end_has_its_error(status: int, stderr: str, kind: type) -> None:
    assert type(wire.ended("d", status, stderr)) is kind


def test_what_comes_back_must_be_what_was_sent(tmp_path: Path) -> None:
    job = Job(product(tmp_path / "m", 4).directory, ({"x": np.ones((1, 4), np.float32)},))
    (tmp_path / "job").mkdir()
    folder = tmp_path / "job"
    wire.pack(job, folder)
    with pytest.raises(DeviceError, match="no readable result"):
        wire.unpack(folder, job, "d")
    outputs = {"0/y": np.ones((1, 4), np.float32)}
    np.savez(folder / "outputs.npz", **outputs)  # type: ignore[arg-type]
    result = {"wire": 1, "times_ms": {}, "load_ms": 1.0, "outputs_sha256": "0" * 64}
    (folder / "result.json").write_text(json.dumps(result))
    with pytest.raises(DeviceError, match="not those that were sent"):
        wire.unpack(folder, job, "d")
    (folder / "result.json").write_text(json.dumps({**result, "wire": 2}))
    with pytest.raises(DeviceError, match="wire version 2"):
        wire.unpack(folder, job, "d")


def test_a_runner_of_another_version_refuses_the_job(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "job").mkdir()
    with monkeypatch.context() as later:
        later.setattr(wire, "WIRE", 2)
        wire.pack(Job(product(tmp_path / "m", 4).directory), tmp_path / "job")
    device = open_device("local")
    assert isinstance(device, PythonDevice)
    device.execute(tmp_path / "job", timeout_s=60)
    with pytest.raises(DeviceError, match="of wire version 2, this runner speaks 1"):
        wire.read_result(tmp_path / "job", "d")


def test_unknown_names_get_the_closest_one() -> None:
    with pytest.raises(InputError, match="did you mean 'local'"):
        kind_of("locl")


def test_every_kind_says_what_it_is() -> None:
    for kind in kinds():
        assert kind.summary
        assert kind_of(kind.name)[0] is kind
        assert all(m.remedy for option in kind.options or ("",) for m in kind.missing(option))


def test_jobs_are_frozen(tmp_path: Path) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Job(tmp_path).threads = 2  # type: ignore[misc]
