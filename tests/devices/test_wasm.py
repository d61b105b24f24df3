"""onnxruntime-web in Node answers as it says it does; nothing here can be answered by the host."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import psutil
import pytest

from exporter.devices import web, web_wire
from exporter.devices.device import Device, Job
from exporter.devices.registry import kind_of, open_device
from exporter.errors import (
    DeviceError,
    DeviceKilled,
    DeviceMissing,
    DeviceRefused,
    DeviceTimeout,
)
from exporter.graph.session import open_run, write_session
from exporter.progress import Silent
from exporter.target import Workload
from tests.devices import web_parts
from tests.devices.graphs import cached_decoder, product

X = {"x": np.random.default_rng(0).normal(size=(2, 64)).astype(np.float32)}


@pytest.fixture(scope="module")
def wasm() -> Device:
    web_parts.usable("wasm")
    return open_device("wasm")


def test_it_is_onnxruntime_web_in_node(wasm: Device, tmp_path: Path) -> None:
    model = product(tmp_path / "m", 64)
    ran = wasm.run(Job(model.directory, (X,), X, repeats=4), timeout_s=60)
    lock = json.loads((web.SCRIPTS / "package-lock.json").read_text())
    assert ran.runtime == lock["packages"]["node_modules/onnxruntime-web"]["version"]
    assert ran.runtime != onnxruntime.__version__
    assert ran.facts["node"].split(".")[0].isdigit()
    assert (wasm.traits.isa, wasm.traits.cost, wasm.traits.emulated) == ("wasm", "ms", False)
    np.testing.assert_allclose(ran.outputs[0]["y"], open_run(model)(X)["y"], atol=1e-4)
    assert len(ran.costs["run"]) == 4
    assert ran.facts["warm_up_runs"] >= 20
    assert (ran.load_cost or 0) > 0


def test_peak_memory_is_nodes_own_and_grows_with_the_model(wasm: Device, tmp_path: Path) -> None:
    large = np.ones(100 << 20, np.uint8)  # of this process, which is not to be counted
    peaks = []
    for width in (64, 2048):
        model = web_parts.external(tmp_path / str(width), width)
        feeds = {"x": np.ones((1, width), np.float32)}
        peaks.append(wasm.run(Job(model.directory, (feeds,)), timeout_s=60).peak_mib)
    if None in peaks:
        pytest.skip("this system has no /proc")
    assert large.all()
    assert peaks[1] - peaks[0] > 16  # MiB of weights


def test_all_types_come_back_to_the_bit(wasm: Device, tmp_path: Path) -> None:
    model = web_parts.echoes(tmp_path / "m")
    calls = (web_parts.echo_feeds(1), web_parts.echo_feeds(3))
    ran = wasm.run(Job(model.directory, calls), timeout_s=60)
    for feeds, outputs in zip(calls, ran.outputs, strict=True):
        for name, array in feeds.items():
            assert outputs[f"{name}_back"].dtype == array.dtype
            np.testing.assert_array_equal(outputs[f"{name}_back"], array)


@pytest.mark.parametrize("make", [web_parts.external, web_parts.four_bits])
def test_external_data_and_four_bits(wasm: Device, tmp_path: Path, make) -> None:
    model = make(tmp_path / "m")
    ran = wasm.run(Job(model.directory, (X,)), timeout_s=60)
    np.testing.assert_allclose(ran.outputs[0]["y"], open_run(model)(X)["y"], atol=1e-4)


def test_attention_of_language_models(wasm: Device, tmp_path: Path) -> None:
    model, feeds = web_parts.grouped_attention(tmp_path / "m"), web_parts.attention_feeds()
    ran = wasm.run(Job(model.directory, (feeds,)), timeout_s=60)
    assert list(ran.outputs[0]) == ["y"]  # not the cache
    np.testing.assert_allclose(ran.outputs[0]["y"], open_run(model)(feeds)["y"], atol=1e-4)


def test_eight_bits_agree(wasm: Device, tmp_path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole = product(tmp_path / "m", 64)
    (tmp_path / "q").mkdir()
    quantize_dynamic(whole.path, tmp_path / "q" / "model.onnx", weight_type=QuantType.QInt8)
    there = wasm.run(Job(tmp_path / "q", (X,)), timeout_s=60).outputs[0]["y"].ravel()
    here = open_run(whole)(X)["y"].ravel()
    assert not np.allclose(there, here, atol=1e-4)  # it did compute in 8 bits
    assert there @ here / np.linalg.norm(there) / np.linalg.norm(here) > 0.999


@pytest.mark.parametrize("batch", [1, 2])
def test_a_language_model_reads_and_writes_with_its_cache(
    wasm: Device, tmp_path: Path, batch: int
) -> None:
    model = cached_decoder(tmp_path / "m")
    workload = Workload(batch=batch, prompt_length=3, decode_tokens=4)
    feeds = {"input_ids": np.array([[3, 1, 4], [1, 5, 9]])[:batch]}
    job = Job(model.directory, feeds=feeds, workload=workload, repeats=2)
    there = wasm.run(job, timeout_s=60)
    here = open_device("local").run(job, timeout_s=60)
    np.testing.assert_array_equal(there.tokens, here.tokens)
    np.testing.assert_allclose(there.logits, here.logits, atol=1e-4)
    assert {phase: len(costs) for phase, costs in there.costs.items()} == {
        "prefill": 2,
        "decode": 2,
    }


def test_session_json_is_honoured(wasm: Device, tmp_path: Path) -> None:
    model = web_parts.summed(tmp_path / "m")
    feeds = {"x": np.random.default_rng(1).normal(size=(4, 512)).astype(np.float32)}
    fused = wasm.run(Job(model.directory, (feeds,)), timeout_s=60).outputs[0]["y"]
    write_session(model, ("MatMulAddFusion",))
    apart = wasm.run(Job(model.directory, (feeds,)), timeout_s=60).outputs[0]["y"]
    np.testing.assert_allclose(fused, apart, rtol=1e-3)
    assert (fused != apart).any()


def test_an_unknown_operator_is_named(wasm: Device, tmp_path: Path) -> None:
    with pytest.raises(DeviceRefused, match=r"wasm: .*Frobnicate"):
        wasm.run(Job(web_parts.stranger(tmp_path / "m").directory), timeout_s=60)


def test_what_is_no_model_is_refused(wasm: Device, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\x07not a model")
    with pytest.raises(DeviceRefused, match="wasm: "):
        wasm.run(Job(tmp_path, feeds=X), timeout_s=60)


@pytest.mark.parametrize("numbers", [550_000_000, 1_100_000_000, 10**10])
def test_beyond_32_bits_is_memory(wasm: Device, tmp_path: Path, numbers: int) -> None:
    model = web_parts.hungry(tmp_path / "m")
    with pytest.raises(DeviceKilled, match="wasm: memory was full"):
        wasm.run(Job(model.directory, ({"n": np.array([numbers])},)), timeout_s=60)


def test_time_is_over_and_node_is_gone(wasm: Device, tmp_path: Path) -> None:
    model = web_parts.endless(tmp_path / "m")
    feeds = {"x": np.ones((1, 512), np.float32)}
    with pytest.raises(DeviceTimeout, match="wasm: not finished after 2 s"):
        wasm.run(Job(model.directory, (feeds,)), timeout_s=2)
    mine = psutil.Process().children(recursive=True)
    assert not [p for p in mine if "node" in p.name()]


def test_a_file_too_large_for_javascript(tmp_path: Path, monkeypatch) -> None:
    model = product(tmp_path / "m", 8)
    monkeypatch.setattr(web_wire, "_FILE_LIMIT_BYTES", 100)
    (tmp_path / "job").mkdir()
    with pytest.raises(DeviceRefused, match=r"must be < 2 GiB, model\.onnx has"):
        web_wire.pack_web(Job(model.directory), tmp_path / "job", "d", provider="wasm", threads=1)


def test_outputs_that_were_altered_on_the_way(tmp_path: Path) -> None:
    result = {"wire": 1, "times_ms": {}, "load_ms": 1.0, "arrays": [], "outputs_sha256": "0" * 64}
    (tmp_path / "result.json").write_text(json.dumps(result))
    (tmp_path / "outputs.bin").write_bytes(b"")
    with pytest.raises(DeviceError, match="not those that were sent"):
        web_wire.unpack_web(tmp_path, Job(tmp_path), "d")


def test_without_node_the_remedy_is_the_systems(monkeypatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    lacks = kind_of("wasm")[0].missing("")
    assert lacks[0].what.startswith("Node")
    assert "apt-get install nodejs" in lacks[0].remedy
    assert not any(lack.installable for lack in lacks)
    with pytest.raises(DeviceMissing, match="needs Node"):
        kind_of("wasm")[0].install(Silent())


def test_without_packages_the_remedy_is_to_install(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("EXPORTER_CACHE", str(tmp_path))
    monkeypatch.setattr(web, "_node_version", lambda: 22)
    (lack,) = kind_of("wasm")[0].missing("")
    assert (lack.remedy, lack.installable) == ("exporter devices install wasm", True)
    with pytest.raises(DeviceMissing, match="run exporter devices install wasm"):
        open_device("wasm")


def test_npm_that_fails_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("EXPORTER_CACHE", str(tmp_path))
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho code EINTEGRITY >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setattr(web, "_node_version", lambda: 22)
    monkeypatch.setattr(shutil, "which", lambda name: str(npm))
    with pytest.raises(DeviceError, match="npm ci failed: code EINTEGRITY"):
        kind_of("wasm")[0].install(Silent())
    assert web.web_packages() is None


def test_the_lock_names_no_registry() -> None:
    lock = json.loads((web.SCRIPTS / "package-lock.json").read_text())
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert all(entry["integrity"].startswith("sha512-") for entry in packages.values())
    assert not any("resolved" in entry for entry in packages.values())
