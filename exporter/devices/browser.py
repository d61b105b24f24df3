"""onnxruntime-web in a headless Chromium, dressed as a phone and slowed down, or on its WebGPU."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from exporter.devices.device import Device, DeviceKind, Job, Missing, Traits
from exporter.devices.page_server import served
from exporter.devices.web import (
    SCRIPTS,
    WebDevice,
    install_web,
    missing_web,
    playwright,
    run_node,
    web_library,
)
from exporter.devices.web_wire import FEEDS, OUTPUTS
from exporter.devices.wire import MODEL, SPEC, WIRE, read_result
from exporter.errors import DeviceMissing, ProfileError
from exporter.progress import Progress

PHONE = "Pixel 7"  # of playwright's list
# DevTools' own presets: 4 is a mid-range phone beside a good laptop, 6 a cheap one.
_RATES = {"phone": 4.0, "1x": 1.0, "2x": 2.0, "4x": 4.0, "6x": 6.0}
_WEBGPU = "webgpu"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
_QUIET = (
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_NO_GPU = ("--disable-gpu",)
_GPU = ("--enable-unsafe-webgpu", "--ignore-gpu-blocklist", "--enable-features=Vulkan")
_SOFTWARE_GPU = (
    "--enable-unsafe-webgpu",
    "--enable-unsafe-swiftshader",
    "--use-webgpu-adapter=swiftshader",
)
_PROBE_LIMIT_S = 60.0


class Browser(WebDevice):
    """A headless Chromium.

    Slowed down it has a phone's viewport, pixel ratio, touch and user agent. DevTools slow the
    main thread down by pausing it, which is a rough likeness of a slower phone: the same cores,
    caches and memory, only less often. So those times are "throttled_ms", not ms, good for
    comparing models with each other, and there is one thread, because no other would be slowed.
    Not slowed down (1x, WebGPU) it is this machine's own browser and its times are real.
    """

    def __init__(self, option: str, rate: float, *, software: bool = False) -> None:
        self.rate = rate
        slow = rate > 1
        title = "Chromium"
        if option == _WEBGPU:
            self.provider = _WEBGPU
            title += " with WebGPU, in software" if software else " with WebGPU"
        elif slow:
            title += f" as a {PHONE}, CPU {rate:g} times slower"
        self._software = software
        # Time of a GPU that is computed on the CPU is nobody's time.
        cost = None if software else "throttled_ms" if slow else "ms"
        self.traits = Traits(
            f"browser:{option}", title, "wasm", emulated=slow or software, cost=cost
        )

    def threads(self, job: Job) -> int:
        """One where it is slowed down."""
        return 1 if self.rate > 1 else job.threads

    def execute(self, folder: Path, *, timeout_s: float) -> None:
        """Serve the folder to a page of a browser that is started for it and stopped after it."""
        build = "ort.webgpu.bundle.min.mjs" if self.provider == _WEBGPU else _WASM_BUILD
        spec = json.loads((folder / SPEC).read_text(encoding="utf-8")) | {"library": build}
        (folder / SPEC).write_text(json.dumps(spec), encoding="utf-8")
        pages = {name: SCRIPTS / name for name in ("page.html", "page.mjs", "runner.mjs")}
        library = {f"dist/{path.name}": path for path in web_library().iterdir()}
        models = {f"{MODEL}/{path.name}": path for path in (folder / MODEL).glob("*")}
        job = {name: folder / name for name in (SPEC, FEEDS)}
        with (
            served(pages | library | models | job, {OUTPUTS: folder / OUTPUTS}) as address,
            _profile() as profile,
        ):
            setup = {
                "executable": find_chromium(),
                "url": f"{address}page.html",
                "phone": PHONE if self.rate > 1 else None,
                "throttle": self.rate,
                "sandbox": not _is_root(),
                "arguments": [*_QUIET, *self._gpu_arguments()],
            }
            (folder / "browser.json").write_text(json.dumps(setup), encoding="utf-8")
            arguments = [SCRIPTS / "chromium.mjs", playwright(), profile, folder]
            run_node([str(a) for a in arguments], folder, self.traits.name, timeout_s=timeout_s)

    def facts(self) -> dict[str, Any]:
        """What the page tells of its browser."""
        with tempfile.TemporaryDirectory(prefix="exporter-") as temporary:
            folder = Path(temporary).resolve()
            spec = {"wire": WIRE, "job": "probe", "threads": 1}
            (folder / SPEC).write_text(json.dumps(spec), encoding="utf-8")
            self.execute(folder, timeout_s=_PROBE_LIMIT_S)
            return dict(read_result(folder, self.traits.name)["facts"])

    def _gpu_arguments(self) -> tuple[str, ...]:
        if self.provider != _WEBGPU:
            return _NO_GPU
        return _SOFTWARE_GPU if self._software else _GPU


_WASM_BUILD = "ort.wasm.bundle.min.mjs"


class BrowserKind(DeviceKind):
    """`browser`."""

    name = "browser"
    summary = "onnxruntime-web in Chromium as a phone, its CPU slowed down; or its WebGPU"
    options = (*_RATES, _WEBGPU)

    def missing(self, option: str) -> tuple[Missing, ...]:
        """Node, onnxruntime-web, Chromium, and a GPU for WebGPU."""
        lacks = missing_web(self.name)
        if find_chromium() is None:
            lacks += (
                Missing(
                    "Chromium",
                    "apt-get install chromium (Debian), brew install --cask chromium, "
                    "or set CHROMIUM to the path of Chromium or Chrome",
                ),
            )
        return lacks

    def open(self, option: str, settings: Mapping[str, Any]) -> Device:
        """The browser.

        Args:
            settings: `throttle`, how many times slower the CPU shall be (≥ 1), overrides the
                option's; `software_gpu` lets WebGPU run in software, for answers without a cost.
        """
        if option == _WEBGPU:
            return _with_adapter(Browser(option, 1.0, software=bool(settings.get("software_gpu"))))
        rate = settings.get("throttle", _RATES[option])
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 1 <= rate <= 100:
            raise ProfileError(
                f"{self.name}:{option}",
                "throttle must be a number from 1 to 100",
                got=rate,
                remedy="set how many times slower the CPU shall be.",
            )
        return Browser(option, float(rate))

    def install(self, progress: Progress) -> None:
        """Fetch onnxruntime-web and playwright; see `install_web`. Chromium is not fetched."""
        install_web(self.name, progress)


def find_chromium() -> str | None:
    """The browser that `CHROMIUM` names, else the first usual one, or None."""
    named = os.environ.get("CHROMIUM")
    if named:
        return shutil.which(named)
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None and sys.platform == "darwin" and Path(_MAC).is_file():
        return _MAC
    return found


def _with_adapter(device: Browser) -> Browser:
    """`device`, after its page got an adapter that is not software, unless it shall be."""
    adapter = device.facts().get("webgpu")
    if adapter is None or (adapter["software"] and not device.traits.emulated):
        raise DeviceMissing(
            f"--on {device.traits.name}",
            "no WebGPU adapter" + (" but one in software" if adapter else ""),
            remedy="use a machine whose Chromium shows a GPU at chrome://gpu, or browser:phone.",
        )
    return device


def _is_root() -> bool:
    """Chromium's sandbox does not start as root."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


@contextmanager
def _profile() -> Iterator[Path]:
    """An empty user data directory; afterwards it is gone, and with it every browser that had it.

    Playwright gives the browser a session of its own, so that the end of Node does not end it.
    """
    folder = Path(tempfile.mkdtemp(prefix="exporter-chromium-")).resolve()
    try:
        yield folder
    finally:
        _end_browsers(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _end_browsers(profile: Path) -> None:
    """Kill every process that was started with `profile` in its command line, with its children."""
    left = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(argument.endswith(str(profile)) for argument in process.cmdline()):
                left += [process, *process.children(recursive=True)]
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=10)


KIND = BrowserKind()
