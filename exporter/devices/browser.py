"""onnxruntime-web in a headless Chromium, dressed as a phone and slowed down, or on its WebGPU."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter.devices.chromium import find_chromium, has_sandbox, missing_chromium, profile
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
# DevTools' presets: 4 is a mid-range phone beside a good laptop, 6 a cheap one.
_RATES = {"phone": 4.0, "1x": 1.0, "2x": 2.0, "4x": 4.0, "6x": 6.0}
_WEBGPU, _SOFTWARE = "webgpu", "webgpu-software"
_PAGES = ("page.html", "page.mjs", "runner.mjs")
_QUIET = (
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_GPU_ARGUMENTS = {
    _WEBGPU: ("--enable-unsafe-webgpu", "--ignore-gpu-blocklist", "--enable-features=Vulkan"),
    _SOFTWARE: (
        "--enable-unsafe-webgpu",
        "--enable-unsafe-swiftshader",
        "--use-webgpu-adapter=swiftshader",
    ),
}
_PROBE_LIMIT_S = 60.0


class Browser(WebDevice):
    """A headless Chromium.

    Slowed down it has a phone's viewport, pixel ratio, touch and user agent. DevTools slow the
    main thread down by pausing it, a rough likeness of a slower phone: the caches and the memory
    stay this machine's. So its times are "throttled_ms" and not ms, good for comparing models
    with each other, and the session has one thread, because no other would be slowed. Not slowed
    down (1x, webgpu) it is this machine's own browser, undisguised, and its times are real. WebGPU
    in software gives answers and no cost: a GPU that the CPU computes has nobody's time.

    Only loading and the timed workload are slowed down, not its warm-up nor the answers to calls.
    Fetching the model's files is not timed.
    """

    def __init__(self, option: str, rate: float = 1.0) -> None:
        self.rate = rate
        self._option = option
        if option in _GPU_ARGUMENTS:
            self.provider = _WEBGPU
        slow, software = rate > 1, option == _SOFTWARE
        look = f" as a {PHONE}, CPU {rate:g} times slower" if slow else ""
        gpu = " with WebGPU" if self.provider == _WEBGPU else ""
        self.traits = Traits(
            f"browser:{option}",
            f"Chromium{look}{gpu}{' in software' if software else ''}",
            "wasm",
            emulated=slow or software,
            cost=None if software else "throttled_ms" if slow else "ms",
        )

    def threads(self, job: Job) -> int:
        """One where it is slowed down."""
        return 1 if self.rate > 1 else job.threads

    def execute(self, folder: Path, *, timeout_s: float) -> None:
        """Serve the folder to a page of a browser that is started for it and stopped after it."""
        spec = json.loads((folder / SPEC).read_text(encoding="utf-8"))
        spec["library"] = f"ort.{self.provider}.bundle.min.mjs"
        (folder / SPEC).write_text(json.dumps(spec), encoding="utf-8")
        files = {name: SCRIPTS / name for name in _PAGES}
        files |= {f"dist/{path.name}": path for path in web_library().iterdir()}
        files |= {f"{MODEL}/{path.name}": path for path in (folder / MODEL).glob("*")}
        files |= {name: folder / name for name in (SPEC, FEEDS)}
        with served(files, {OUTPUTS: folder / OUTPUTS}) as address, profile() as own:
            setup = {
                "executable": find_chromium(),
                "url": f"{address}page.html",
                "phone": PHONE if self.rate > 1 else None,
                "throttle": self.rate,
                "sandbox": has_sandbox(),
                "arguments": [*_QUIET, *_GPU_ARGUMENTS.get(self._option, ("--disable-gpu",))],
            }
            (folder / "browser.json").write_text(json.dumps(setup), encoding="utf-8")
            arguments = [str(SCRIPTS / "chromium.mjs"), str(playwright()), str(folder), str(own)]
            name = self.traits.name
            run_node(arguments, folder, name, timeout_s=timeout_s, temporary=own)

    def facts(self) -> dict[str, Any]:
        """What the page tells of its browser."""
        with tempfile.TemporaryDirectory(prefix="exporter-") as temporary:
            folder = Path(temporary).resolve()
            spec = {"wire": WIRE, "job": "probe", "threads": 1}
            (folder / SPEC).write_text(json.dumps(spec), encoding="utf-8")
            self.execute(folder, timeout_s=_PROBE_LIMIT_S)
            return dict(read_result(folder, self.traits.name)["facts"])


class BrowserKind(DeviceKind):
    """`browser`."""

    name = "browser"
    summary = "onnxruntime-web in Chromium as a phone, its CPU slowed down; or its WebGPU"
    options = (*_RATES, *_GPU_ARGUMENTS)

    def missing(self, option: str) -> tuple[Missing, ...]:
        """Node, onnxruntime-web, Chromium, and for WebGPU a GPU.

        That the GPU has an adapter shows only when the device is opened.
        """
        lacks = missing_web(self.name) + missing_chromium()
        if option == _WEBGPU and not _has_gpu():
            lacks += (
                Missing("a WebGPU adapter (there is no GPU)", "exporter on a machine with a GPU"),
            )
        return lacks

    def open(self, option: str, settings: Mapping[str, Any]) -> Device:
        """The browser.

        Args:
            settings: `throttle`, how many times slower the CPU shall be, overrides the option's.

        Raises:
            DeviceMissing: WebGPU has no adapter, or none but one in software.
            ProfileError: `throttle` is no number from 1 to 100.
        """
        if option in _GPU_ARGUMENTS:
            return _with_adapter(Browser(option), software=option == _SOFTWARE)
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


def _with_adapter(device: Browser, *, software: bool) -> Browser:
    """`device`, after its page got an adapter that is not software, unless it may be."""
    adapter = device.facts()["webgpu"]
    if adapter is None or (adapter["software"] and not software):
        raise DeviceMissing(
            device.traits.name,
            "no WebGPU adapter" + (" but one in software" if adapter else ""),
            remedy="use a machine whose Chromium shows WebGPU at chrome://gpu, or browser:phone.",
        )
    return device


def _has_gpu() -> bool:
    """False where Linux shows no GPU, which is quicker to see than a browser starts."""
    nodes = ("dri/renderD*", "nvidia[0-9]*", "dxg")
    return sys.platform != "linux" or any(any(Path("/dev").glob(node)) for node in nodes)


KIND = BrowserKind()
