"""This machine as a device: timing and memory of real models in processes of their own."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from exporter.devices.conditions import clock_mhz
from exporter.devices.host import host_description, host_features, host_matches, matches
from exporter.devices.timing import Timing, peak_memory, time_models
from exporter.errors import DeviceError
from exporter.graph.model import OnnxModel
from exporter.progress import Silent
from exporter.target import FEATURES, Workload, load_target
from tests.devices.graphs import cached_decoder, product
from tests.tiny import checkpoint

WORKLOAD = Workload(prompt_length=6, decode_tokens=3)


def _x(size: int) -> dict[str, np.ndarray]:
    return {"x": np.ones((1, size), np.float32), "stranger": np.zeros(3)}


class Counting(Silent):
    """Counts the units that are reported."""

    def __init__(self) -> None:
        self.done = 0

    def stage(self, name: str, total: int | None = None):  # type: ignore[no-untyped-def]
        outer = self

        class Stage:
            def __enter__(self) -> Stage:
                return self

            def __exit__(self, *exc: object) -> None:
                pass

            def advance(self, steps: int = 1) -> None:
                outer.done += steps

        return Stage()


def test_models_are_timed_together_and_rounds_align(tmp_path: Path) -> None:
    models = {"one": product(tmp_path / "one", 256), "two": product(tmp_path / "two", 256, seed=1)}
    progress = Counting()
    begin = time.perf_counter()
    timing = time_models(models, _x(256), WORKLOAD, threads=1, rounds=7, seed=5, progress=progress)
    elapsed_ms = 1e3 * (time.perf_counter() - begin)
    assert {name: list(phases) for name, phases in timing.times_ms.items()} == {
        "one": ["run"],
        "two": ["run"],
    }
    every = [ms for phases in timing.times_ms.values() for ms in phases["run"]]
    assert len(every) == 2 * 7
    assert min(every) > 0
    assert sum(every) < elapsed_ms
    assert len(set(every)) > 7
    assert progress.done == 7
    assert timing.workload == WORKLOAD


def test_more_rounds_are_taken_in_the_same_process_until_told_to_stop(tmp_path: Path) -> None:
    models = {"one": product(tmp_path / "one", 16), "two": product(tmp_path / "two", 16)}
    seen: list[Timing] = []

    def go_on(timing: Timing) -> int:
        seen.append(timing)
        return 2 * sum(timing.blocks) if len(seen) < 3 else 0

    timing = time_models(
        models, _x(16), WORKLOAD, threads=1, rounds=6, openings=2, go_on=go_on, seed=1
    )
    assert [sum(t.blocks) for t in seen] == [6, 12, 24]
    assert timing.blocks == (3, 3, 3, 3, 6, 6)
    assert timing.times_ms == seen[-1].times_ms
    for earlier, later in itertools.pairwise(seen):
        for name in models:
            known = earlier.times_ms[name]["run"]
            assert later.times_ms[name]["run"][: len(known)] == known
    assert timing.conditions.load_before is not None
    assert timing.conditions.load_after is not None


def test_what_goes_wrong_while_deciding_leaves_no_process(tmp_path: Path) -> None:
    model = product(tmp_path, 16)

    others = set(psutil.Process().children(recursive=True))

    def fails(timing: Timing) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        time_models({"m": model}, _x(16), WORKLOAD, threads=1, rounds=5, go_on=fails)
    assert set(psutil.Process().children(recursive=True)) == others

    def kills(timing: Timing) -> int:
        (child,) = set(psutil.Process().children()) - others
        child.kill()
        while child.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        return 10

    with pytest.raises(DeviceError, match="signal 9"):
        time_models({"m": model}, _x(16), WORKLOAD, threads=1, rounds=5, go_on=kills)


def test_the_clock_is_the_mean_of_the_cores_where_the_driver_tells(tmp_path: Path) -> None:
    for core, khz in (("cpu0", "1500000"), ("cpu1", "2500000"), ("cpu2", "gone")):
        (tmp_path / core / "cpufreq").mkdir(parents=True)
        (tmp_path / core / "cpufreq" / "scaling_cur_freq").write_text(f"{khz}\n")
    assert clock_mhz(tmp_path) == 2000.0
    elsewhere = clock_mhz(tmp_path / "nothing")
    assert elsewhere is None or elsewhere > 0


def test_a_cached_language_model_has_two_phases(tmp_path: Path) -> None:
    timing = time_models(
        {"lm": cached_decoder(tmp_path)},
        {"input_ids": np.asarray([[1, 2, 3]])},
        WORKLOAD,
        threads=1,
        rounds=5,
    )
    phases = timing.times_ms["lm"]
    assert {name: len(ms) for name, ms in phases.items()} == {"prefill": 5, "decode": 5}
    assert min(phases["prefill"] + phases["decode"]) > 0


def test_a_model_for_genai_is_measured_by_genai(tmp_path: Path) -> None:
    source = checkpoint("qwen3", tmp_path / "checkpoint")
    model = OnnxModel(tmp_path / "genai")
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-p", "fp32", "-e", "cpu"]
    places = ["-m", str(source), "-o", str(model.directory), "-c", str(tmp_path / "cache")]
    subprocess.run([*builder, *places], check=True, capture_output=True)
    assert model.genai
    # a prompt and an answer that the context of 128 tokens does not hold are cut
    long = Workload(prompt_length=500, decode_tokens=8)
    feeds = {"input_ids": np.random.default_rng(0).integers(4, 40, (1, 20))}
    timing = time_models({"lm": model}, feeds, long, threads=1, rounds=5)
    assert set(timing.times_ms["lm"]) == {"prefill", "decode"}
    assert timing.workload.prompt_length + timing.workload.decode_tokens < 128
    assert timing.workload.decode_tokens == 8
    assert peak_memory(model, feeds, WORKLOAD, threads=1).peak_mib > 30


def test_peak_memory_holds_the_weights_and_repeats(tmp_path: Path) -> None:
    small, large = product(tmp_path / "small", 16), product(tmp_path / "large", 3000)
    weights_mib = 3000 * 3000 * 4 / 2**20
    light = peak_memory(small, _x(16), WORKLOAD, threads=1)
    heavy = peak_memory(large, _x(3000), WORKLOAD, threads=1)
    assert heavy.peak_mib - light.peak_mib > 0.9 * weights_mib
    assert light.baseline_mib is None or light.baseline_mib < light.peak_mib
    again = peak_memory(large, _x(3000), WORKLOAD, threads=1)
    assert again.peak_mib == pytest.approx(heavy.peak_mib, rel=0.03)


def test_a_model_that_does_not_run_is_a_device_error(tmp_path: Path) -> None:
    model = product(tmp_path, 16)
    with pytest.raises(DeviceError, match="input 'x'"):
        time_models({"m": model}, {"y": np.zeros(3)}, WORKLOAD, threads=1, rounds=5)
    model.path.write_bytes(model.path.read_bytes()[:100])
    with pytest.raises(DeviceError, match="could not be measured"):
        peak_memory(model, _x(16), WORKLOAD, threads=1)


def test_the_host_describes_itself_in_the_words_of_profiles() -> None:
    host = host_description()
    assert host["isa"] in FEATURES
    assert set(host_features()) <= set(FEATURES[host["isa"]])
    assert host["cores"] >= 1
    assert host["memory_mib"] > 100
    assert all(host[key] for key in ("cpu", "os", "python", "onnxruntime"))


def test_a_machine_matches_a_target_by_isa_features_and_cores() -> None:
    cloud, mobile = load_target("cloud-cpu"), load_target("mobile")
    server = {"isa": "x86-64", "features": ["avx2", "avx512"], "cores": 2}
    assert matches(server, cloud)
    assert not matches({**server, "cores": 1}, cloud)
    assert not matches({**server, "features": []}, cloud)
    assert not matches(server, mobile)
    phone = {"isa": "arm64", "features": ["neon", "fp16", "dotprod", "i8mm"], "cores": 8}
    assert matches(phone, mobile)
    assert not matches({**phone, "features": ["neon", "fp16"]}, mobile)
    assert not (host_matches(cloud) and host_matches(mobile))
