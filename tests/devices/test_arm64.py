"""Arm CPUs under QEMU: they answer as Arm answers, and each counts what its own kernels run."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import psutil
import pytest

from exporter.devices import qemu_user
from exporter.devices.arm64 import CPUS, REQUIREMENTS, arm64_device
from exporter.devices.device import Job, Ran
from exporter.devices.emulator import install_emulator
from exporter.devices.registry import kind_of, open_device
from exporter.errors import (
    DeviceError,
    DeviceKilled,
    DeviceMissing,
    DeviceRefused,
    DeviceTimeout,
)
from exporter.progress import Silent
from exporter.target import FEATURES, Workload
from tests.devices.emulated import counting, device
from tests.devices.graphs import cached_decoder, integer_product, product

SIZE = 64
X = {"x": np.random.default_rng(1).integers(0, 256, (16, SIZE)).astype(np.uint8)}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    model = integer_product(tmp_path_factory.mktemp("int8") / "m", SIZE)
    return Job(model.directory, (X,), X)


@pytest.fixture(scope="module")
def ran(job: Job) -> dict[str, Ran]:
    """An int8 product on a core of each kind."""
    names = ("cortex-a53", "cortex-a76", "i8mm")
    return {name: counting(f"arm64:{name}").run(job, timeout_s=60) for name in names}


def test_answers_are_exact_and_come_from_an_arm(ran: dict[str, Ran], job: Job) -> None:
    exact = open_device("local").run(job, timeout_s=60).outputs[0]["y"]
    for name, there in ran.items():
        np.testing.assert_array_equal(there.outputs[0]["y"], exact)
        assert there.facts["machine"] == "aarch64"
        assert there.facts["cpu"] == CPUS[name].qemu
        assert "qemu-aarch64" in there.facts["emulator"]
        assert there.runtime


def test_each_core_runs_the_kernels_it_has(ran: dict[str, Ran]) -> None:
    used = {name: there.classes["run"] for name, there in ran.items()}
    assert all(counted["saturating_pair"] == 0 for counted in used.values())
    assert used["cortex-a53"]["dot_product"] == used["cortex-a53"]["matrix_multiply"] == 0
    # four products a lane, four lanes
    products = 16 * SIZE * SIZE
    assert used["cortex-a76"]["dot_product"] == products / 16
    assert used["cortex-a76"]["matrix_multiply"] == 0
    assert used["i8mm"]["matrix_multiply"] == products / 32
    all_of = {name: fmean(there.costs["run"]) for name, there in ran.items()}
    assert all_of["cortex-a53"] > all_of["cortex-a76"] > all_of["i8mm"] > products / 32
    assert all_of["cortex-a53"] == pytest.approx(used["cortex-a53"]["all"])


def test_emulated_time_is_not_told_and_memory_is_the_models(ran: dict[str, Ran]) -> None:
    for there in ran.values():
        assert there.peak_mib is None
        assert 0 < (there.heap_mib or 0) < 16
        assert all(count == int(count) for count in there.costs["run"])
        assert (there.load_cost or 0) > 1e6


def test_counts_repeat_exactly_wherever_the_folder_lies(
    ran: dict[str, Ran], job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "a-long-name-for-temporary-files"
    elsewhere.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    monkeypatch.setenv("STRANGER", "x" * 500)
    asked = replace(job, threads=2)  # counters are plain: one thread, and it says so
    again = counting("arm64:cortex-a53").run(asked, timeout_s=60)
    first = ran["cortex-a53"]
    for field in ("costs", "classes", "load_cost", "heap_mib"):
        assert getattr(again, field) == getattr(first, field), field
    assert again.facts["threads"] == 1
    assert list(elsewhere.iterdir()) == []


def test_a_language_model_writes_what_it_writes_here(tmp_path: Path) -> None:
    model = cached_decoder(tmp_path / "m")
    workload = Workload(prompt_length=3, decode_tokens=4)
    job = Job(model.directory, feeds={"input_ids": np.array([[3, 1, 4]])}, workload=workload)
    here = open_device("local").run(job, timeout_s=60)
    there = counting("arm64:cortex-a72").run(job, timeout_s=60)
    np.testing.assert_array_equal(there.tokens, here.tokens)
    np.testing.assert_allclose(there.logits, here.logits, atol=1e-4)
    assert sorted(there.costs) == ["decode", "prefill"]
    # a token written costs about as much as the three that were read: all is overhead here
    assert 0.5 < fmean(there.costs["decode"]) / fmean(there.costs["prefill"]) < 2
    assert there.classes["decode"]["all"] == pytest.approx(fmean(there.costs["decode"]))


def test_without_a_compiler_there_are_answers_and_no_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device("arm64:cortex-a53")
    monkeypatch.setattr(qemu_user, "plugin_options", lambda: None)
    silent = arm64_device("cortex-a53")
    assert silent.traits.cost is None
    x = {"x": np.ones((1, 8), np.float32)}
    job = Job(product(tmp_path / "m", 8).directory, (x,), x, threads=2)
    there = silent.run(job, timeout_s=60)
    here = open_device("local").run(job, timeout_s=60)
    np.testing.assert_allclose(there.outputs[0]["y"], here.outputs[0]["y"], atol=1e-5)
    assert (there.costs, there.classes, there.load_cost) == ({}, {}, None)
    assert there.facts["threads"] == 2


def test_an_installation_without_a_compiler_says_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device("arm64:cortex-a53")
    notes: list[str] = []
    progress = Silent()
    monkeypatch.setattr(progress, "note", notes.append)
    monkeypatch.setattr("exporter.devices.emulator.shutil.which", lambda name: None)
    install_emulator(progress)
    assert len(notes) == 1
    assert "apt-get install gcc" in notes[0]


def test_counts_that_are_cut_are_no_counts(job: Job, tmp_path: Path) -> None:
    there = counting("arm64:cortex-a53")
    (tmp_path / "counts.txt").write_text("1 100 0 0\n", encoding="ascii")
    result = {"regions": [["load", 1, 2]], "workload": {"decode_tokens": 1}}
    with pytest.raises(DeviceError, match="counts are incomplete"):
        there.finished(Ran(), result, tmp_path)


def test_each_cpu_has_its_own_identity_with_and_without_a_plugin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is cached by it must not be taken for another CPU's, or for what was not counted."""
    counting("arm64:cortex-a53")
    told = [arm64_device(cpu).identity for cpu in CPUS]
    monkeypatch.setattr(qemu_user, "plugin_options", lambda: None)
    told += [arm64_device(cpu).identity for cpu in CPUS]
    assert len(set(told)) == 2 * len(CPUS)


def test_a_model_it_refuses(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\x07not a model")
    with pytest.raises(DeviceRefused, match="arm64:cortex-a53: "):
        device("arm64:cortex-a53").run(Job(tmp_path), timeout_s=60)


def _emulators() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "qemu-aarch64" in " ".join(child.cmdline())]


def test_time_is_over_and_nothing_is_left(job: Job) -> None:
    with pytest.raises(DeviceTimeout, match="not finished after 1 s"):
        device("arm64:cortex-a53").run(job, timeout_s=1)
    assert _emulators() == []


def test_a_killed_process_is_told(job: Job) -> None:
    there = device("arm64:cortex-a53")

    def kill() -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for emulator in _emulators():
                emulator.kill()
                return
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(DeviceKilled, match="137"):
        there.run(job, timeout_s=60)
    killer.join()


def test_what_is_not_installed_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPORTER_CACHE", str(tmp_path))
    kind, option = kind_of("arm64")
    lacks = kind.missing(option)
    assert lacks
    assert {m.remedy for m in lacks if m.installable} <= {"exporter devices install arm64"}
    with pytest.raises(DeviceMissing, match="cannot be used here"):
        open_device("arm64:cortex-a76")
    with pytest.raises(DeviceMissing, match="run exporter devices install arm64"):
        arm64_device("cortex-a76")


def test_its_wheels_are_of_the_versions_that_ship() -> None:
    text = REQUIREMENTS.read_text(encoding="utf-8")
    pinned = Path("constraints.txt").read_text(encoding="utf-8").splitlines()
    wanted = re.findall(r"^([\w.-]+==[\w.]+)", text, re.MULTILINE)
    assert sorted(line.partition("==")[0] for line in wanted) == ["numpy", "onnxruntime"]
    assert set(wanted) <= set(pinned)
    assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", text)) == 6


def test_every_core_is_described_in_the_words_of_profiles() -> None:
    for cpu in CPUS.values():
        assert set(cpu.features) <= set(FEATURES["arm64"])
        assert "sve=off,sme=off" in cpu.qemu or cpu.qemu != "max"
