"""onnxruntime-web in Node: the WebAssembly that a browser runs, without a browser."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter.devices.device import Device, DeviceKind, Missing, Traits
from exporter.devices.web import (
    SCRIPTS,
    WebDevice,
    install_web,
    missing_web,
    run_node,
    web_library,
)
from exporter.progress import Progress


class Wasm(WebDevice):
    """onnxruntime-web in Node.

    Answers are those of a browser, bit for bit. Its cost is real milliseconds, of WebAssembly on
    this machine's CPU, warm: neither a phone's nor those of native code here. Opening the session
    contains the compilation of the runtime. Memory is that of the whole process, with Node and
    the model's file in it.
    """

    def __init__(self) -> None:
        self.traits = Traits("wasm", "WebAssembly in Node", "wasm", cost="ms")

    def execute(self, folder: Path, *, timeout_s: float) -> None:
        """Run the runner in a process of its own."""
        script, library = SCRIPTS / "node.mjs", web_library() / "ort.wasm.bundle.min.mjs"
        arguments = [str(script), str(library), str(folder)]
        run_node(arguments, folder, self.traits.name, timeout_s=timeout_s)


class WasmKind(DeviceKind):
    """`wasm`."""

    name = "wasm"
    summary = "onnxruntime-web in Node: a browser's answers, WebAssembly's milliseconds here"

    def missing(self, option: str) -> tuple[Missing, ...]:
        """Node and onnxruntime-web."""
        return missing_web(self.name)

    def open(self, option: str, settings: Mapping[str, Any]) -> Device:
        """Node with onnxruntime-web."""
        web_library()
        return Wasm()

    def install(self, progress: Progress) -> None:
        """Fetch onnxruntime-web; see `install_web`."""
        install_web(self.name, progress)


KIND = WasmKind()
