"""Older x86-64 CPUs under QEMU: they overflow where this machine may not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from exporter.devices.device import Job, Ran
from exporter.devices.host import host_features
from exporter.devices.registry import open_device
from exporter.devices.x86_64 import CPUS, x86_device
from exporter.errors import DeviceCpu
from exporter.target import FEATURES, Workload
from tests.devices.emulated import counting, device
from tests.devices.graphs import cached_decoder, integer_product

SIZE, BATCH = 64, 16
X = {"x": np.full((BATCH, SIZE), 255, np.uint8)}
EXACT = 255 * 127 * SIZE


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    model = integer_product(tmp_path_factory.mktemp("int8") / "m", SIZE, weight=127)
    return Job(model.directory, (X,), X)


@pytest.fixture(scope="module")
def haswell(job: Job) -> Ran:
    return counting("x86-64:haswell").run(job, timeout_s=60)


def test_two_products_saturate_in_int16(haswell: Ran, job: Job) -> None:
    y = haswell.outputs[0]["y"]
    assert (y == 32767 * (SIZE // 2)).all()  # of 2 × 255 × 127 = 64770, 32767 is left
    vnni = {"avx512_vnni", "avx_vnni", "amx_int8"} & set(host_features())
    if vnni:
        here = open_device("local").run(job, timeout_s=60).outputs[0]["y"]
        assert (here == EXACT).all()
    assert haswell.facts["machine"] == "x86_64"
    assert haswell.facts["cpu"] == "Haswell"
    # 32 products in each VPMADDUBSW
    assert haswell.classes["run"]["saturating_pair"] >= BATCH * SIZE * SIZE / 32
    assert haswell.classes["run"]["dot_product"] == 0  # those of VNNI add four in int32


def test_without_avx_they_do_not_and_it_costs_more(haswell: Ran, job: Job) -> None:
    nehalem = counting("x86-64:nehalem").run(job, timeout_s=60)
    assert (nehalem.outputs[0]["y"] == EXACT).all()
    assert min(nehalem.costs["run"]) > 1.3 * max(haswell.costs["run"])
    assert nehalem.classes["run"]["saturating_pair"] == 0


def test_arm_does_not_saturate(job: Job) -> None:
    assert (device("arm64:cortex-a53").run(job, timeout_s=60).outputs[0]["y"] == EXACT).all()


def test_counts_repeat_exactly(haswell: Ran, job: Job) -> None:
    again = counting("x86-64:haswell").run(job, timeout_s=60)
    assert (again.costs, again.classes, again.load_cost) == (
        haswell.costs,
        haswell.classes,
        haswell.load_cost,
    )


def test_a_language_model_writes_what_it_writes_here(tmp_path: Path) -> None:
    model = cached_decoder(tmp_path / "m")
    workload = Workload(prompt_length=3, decode_tokens=4)
    job = Job(model.directory, feeds={"input_ids": np.array([[3, 1, 4]])}, workload=workload)
    here = open_device("local").run(job, timeout_s=60)
    there = counting("x86-64:skylake-client").run(job, timeout_s=60)
    np.testing.assert_array_equal(there.tokens, here.tokens)
    np.testing.assert_allclose(there.logits, here.logits, atol=1e-4)


def test_a_cpu_that_lacks_what_the_runtime_needs(job: Job) -> None:
    device("x86-64:haswell")
    with pytest.raises(DeviceCpu, match="lacks"):
        x86_device("x86-64:qemu64", "qemu64").run(job, timeout_s=60)


def test_every_cpu_is_described_in_the_words_of_profiles() -> None:
    assert all(set(features) <= set(FEATURES["x86-64"]) for _, features in CPUS.values())
