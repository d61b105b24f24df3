"""onnxruntime-web in a real Chromium, which is gone however its job ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import psutil
import pytest

from exporter.devices import browser, chromium
from exporter.devices.device import Device, Job, Ran
from exporter.devices.page_server import served
from exporter.devices.registry import kind_of, open_device
from exporter.errors import (
    DeviceError,
    DeviceKilled,
    DeviceMissing,
    DeviceRefused,
    DeviceTimeout,
    ProfileError,
)
from exporter.graph.session import open_run
from exporter.target import Workload
from tests.devices import web_parts
from tests.devices.graphs import cached_decoder, listening

X = {"x": np.random.default_rng(0).normal(size=(2, 64)).astype(np.float32)}
ENDLESS = {"x": np.ones((1, 512), np.float32)}


@pytest.fixture(scope="module")
def phone() -> Device:
    web_parts.usable("browser")
    return open_device("browser")


@pytest.fixture(scope="module")
def own() -> Device:
    """The browser as it is, which starts sooner."""
    web_parts.usable("browser:1x")
    return open_device("browser:1x")


@pytest.fixture(scope="module")
def as_phone(phone: Device, tmp_path_factory: pytest.TempPathFactory) -> tuple[Ran, np.ndarray]:
    """What a slowed phone answered for external data and its cost, and what the host answers."""
    model = web_parts.external(tmp_path_factory.mktemp("phone") / "m")
    ran = phone.run(Job(model.directory, (X,), X, threads=2), timeout_s=60)
    return ran, open_run(model)(X)["y"]


@pytest.fixture
def profiles(monkeypatch) -> list[Path]:
    """The user data directories that browsers get in a test."""
    given: list[Path] = []
    make = chromium.tempfile.mkdtemp

    def noted(*args, **options) -> str:
        given.append(Path(make(*args, **options)).resolve())
        return str(given[-1])

    monkeypatch.setattr(chromium.tempfile, "mkdtemp", noted)
    return given


@pytest.fixture
def short_place() -> Iterator[Path]:
    """A directory for the temporary files of one process, with a path that Chromium takes."""
    with tempfile.TemporaryDirectory(prefix="x-") as folder:
        yield Path(folder).resolve()


def _page(place: Callable[[], Path | None]) -> psutil.Process | None:
    """The process of the browser that computes, once it does."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        folder = place()
        for process in chromium.users(folder) if folder else []:
            with contextlib.suppress(psutil.Error):
                if process.cpu_times().user > 1 and "--type=renderer" in process.cmdline():
                    return process
        time.sleep(0.2)
    return None


def _nothing_left(profile: Path) -> bool:
    return not profile.exists() and not chromium.users(profile)


def test_it_is_chromium_as_a_phone(phone: Device, as_phone: tuple[Ran, np.ndarray]) -> None:
    ran, host = as_phone
    np.testing.assert_allclose(ran.outputs[0]["y"], host, atol=1e-4)
    facts = ran.facts
    assert f"Chrome/{facts['browser']} Mobile" in facts["user_agent"]
    assert browser.PHONE in facts["user_agent"]
    assert facts["cross_origin_isolated"] is True
    assert facts["device_pixel_ratio"] == 2.625
    assert facts["viewport"][0] == 412
    assert facts["touch_points"] > 0
    assert ran.runtime.count(".") == 2
    assert ran.runtime != onnxruntime.__version__


def test_the_cpu_was_slowed_for_the_cost_and_not_for_warm_up_and_answers(
    phone: Device, as_phone: tuple[Ran, np.ndarray]
) -> None:
    ran, _ = as_phone
    assert ran.facts["throttle_rates"] == [4, 1, 4, 1]  # as DevTools acknowledged them
    assert ran.facts["threads"] == 1  # whatever the job asks for
    assert (phone.traits.cost, phone.traits.emulated) == ("throttled_ms", True)
    assert len(ran.costs["run"]) == 3


def test_not_slowed_down_it_is_no_phone(own: Device, tmp_path: Path) -> None:
    assert (own.traits.cost, own.traits.emulated) == ("ms", False)
    model = web_parts.echoes(tmp_path / "m")
    feeds = web_parts.echo_feeds(2)
    ran = own.run(Job(model.directory, (feeds,), threads=2), timeout_s=60)
    for name, array in feeds.items():
        assert ran.outputs[0][f"{name}_back"].dtype == array.dtype
        np.testing.assert_array_equal(ran.outputs[0][f"{name}_back"], array)
    assert "Mobile" not in ran.facts["user_agent"]
    assert ran.facts["throttle_rates"] == [1, 1]
    assert ran.facts["threads"] == 2


def test_a_language_model_reads_and_writes_with_its_cache(own: Device, tmp_path: Path) -> None:
    model = cached_decoder(tmp_path / "m")
    workload = Workload(prompt_length=3, decode_tokens=4)
    job = Job(model.directory, feeds={"input_ids": np.array([[3, 1, 4]])}, workload=workload)
    there, here = (d.run(job, timeout_s=60) for d in (own, open_device("local")))
    np.testing.assert_array_equal(there.tokens, here.tokens)
    np.testing.assert_allclose(there.logits, here.logits, atol=1e-4)
    assert sorted(there.costs) == ["decode", "prefill"]


def test_an_unknown_operator_is_named(own: Device, tmp_path: Path) -> None:
    with pytest.raises(DeviceRefused, match=r"browser:1x: .*Frobnicate"):
        own.run(Job(web_parts.stranger(tmp_path / "m").directory), timeout_s=60)


def test_webgpu_is_not_told_of_a_gpu_in_software(own: Device, monkeypatch) -> None:
    if not browser._has_gpu():
        with pytest.raises(DeviceMissing, match="a WebGPU adapter"):
            open_device("browser:webgpu")
    monkeypatch.setattr(browser.Browser, "facts", lambda self: {"webgpu": None})
    with pytest.raises(DeviceMissing, match="no WebGPU adapter"):
        browser.KIND.open("webgpu", {})
    monkeypatch.setattr(browser.Browser, "facts", lambda self: {"webgpu": {"software": True}})
    with pytest.raises(DeviceMissing, match="no WebGPU adapter but one in software"):
        browser.KIND.open("webgpu", {})


def test_webgpu_in_software_answers_and_has_no_cost(own: Device, tmp_path: Path) -> None:
    try:
        device = open_device("browser:webgpu-software")
    except DeviceMissing as error:
        pytest.skip(str(error))
    model = web_parts.external(tmp_path / "m")
    ran = device.run(Job(model.directory, (X,), X), timeout_s=60)
    np.testing.assert_allclose(ran.outputs[0]["y"], open_run(model)(X)["y"], atol=1e-3)
    assert device.traits.cost is None
    assert ran.facts["webgpu"]["software"] is True
    assert ran.costs == {}
    assert ran.load_cost is None


def test_time_is_over_and_the_browser_is_gone(
    own: Device, tmp_path: Path, profiles: list[Path]
) -> None:
    model = web_parts.endless(tmp_path / "m")
    with pytest.raises(DeviceTimeout, match="not finished after 3 s"):
        own.run(Job(model.directory, (ENDLESS,)), timeout_s=3)
    assert _nothing_left(profiles[-1])


def test_a_page_that_dies(own: Device, tmp_path: Path, profiles: list[Path]) -> None:
    model = web_parts.endless(tmp_path / "m")

    def kill() -> None:
        page = _page(lambda: profiles[-1] if profiles else None)
        if page:
            page.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(DeviceKilled, match="the page or the browser died"):
        own.run(Job(model.directory, (ENDLESS,)), timeout_s=60)
    thread.join()
    assert _nothing_left(profiles[-1])


def test_a_browser_that_does_not_start(
    own: Device, tmp_path: Path, monkeypatch, profiles: list[Path]
) -> None:
    broken = tmp_path / "chromium"
    broken.write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CHROMIUM", str(broken))
    with pytest.raises(DeviceError, match="Chromium did not start: broken") as caught:
        own.run(Job(web_parts.echoes(tmp_path / "m").directory), timeout_s=30)
    assert type(caught.value) is DeviceError
    assert _nothing_left(profiles[-1])


def test_interrupted_and_the_browser_is_gone(
    own: Device, tmp_path: Path, short_place: Path
) -> None:
    """Control-C reaches this process and not the browser, which has a session of its own."""
    model = web_parts.endless(tmp_path / "m")
    code = (
        "import numpy as np; from pathlib import Path\n"
        "from exporter.devices.device import Job; from exporter.devices.registry import *\n"
        "calls = ({'x': np.ones((1, 512), np.float32)},)\n"
        f"job = Job(Path({str(model.directory)!r}), calls)\n"
        "open_device('browser:1x').run(job, timeout_s=60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"TMPDIR": str(short_place)},
        stderr=subprocess.PIPE,
        preexec_fn=listening,
    )
    assert _page(lambda: short_place)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert b"KeyboardInterrupt" in stderr
    assert list(short_place.iterdir()) == []
    assert chromium.users(short_place) == []


@pytest.mark.parametrize("rate", [0.5, "fast", True, float("nan")])
def test_a_rate_that_is_none(rate: object) -> None:
    with pytest.raises(ProfileError, match="throttle must be a number from 1 to 100"):
        browser.KIND.open("phone", {"throttle": rate})


def test_a_long_temporary_directory_is_not_given_to_chromium(tmp_path: Path, monkeypatch) -> None:
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setattr(chromium.tempfile, "tempdir", str(long))
    with chromium.profile() as folder:
        assert len(str(folder)) < 60
    assert not folder.exists()


def test_the_profile_may_set_the_rate() -> None:
    device = browser.KIND.open("phone", {"throttle": 6})
    assert (device.rate, device.traits.cost) == (6.0, "throttled_ms")
    assert "6 times slower" in device.traits.title


def test_without_chromium_the_remedy_is_the_systems(monkeypatch) -> None:
    monkeypatch.setenv("CHROMIUM", "/nowhere/chromium")
    lack = kind_of("browser")[0].missing("phone")[-1]
    assert lack.what == "Chromium at CHROMIUM=/nowhere/chromium"
    assert "apt-get install chromium" in lack.remedy
    assert not lack.installable


def test_only_named_files_are_served_and_only_under_the_secret_address(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "page").mkdir()
    page = tmp_path / "page" / "page.html"
    page.write_text("hello")
    with served({"page.html": page}, {"out.bin": tmp_path / "out"}) as address:
        root = address[: address.index("/", 8)]
        with urllib.request.urlopen(f"{address}page.html") as answer:
            assert answer.read() == b"hello"
            assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
            assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        with urllib.request.urlopen(f"{address}out.bin", data=b"\0" * 5) as answer:
            assert answer.status == 204
        for wrong in (f"{address}../secret", f"{address}%2e%2e/secret", f"{root}/page.html", root):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(wrong)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{address}page.html", data=b"other")
    assert (tmp_path / "out").read_bytes() == b"\0" * 5
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{address}page.html")
