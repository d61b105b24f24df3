"""This machine as a device: a fresh process of this Python."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter.devices.conditions import cpuinfo
from exporter.devices.device import Device, DeviceKind, Missing, Traits
from exporter.devices.host import host_features, host_isa
from exporter.devices.process import run_process
from exporter.devices.python_device import PythonDevice
from exporter.devices.wire import ended


class Local(PythonDevice):
    """This machine."""

    link = True

    def __init__(self) -> None:
        title = cpuinfo("model name") or host_isa()
        self.traits = Traits("local", title, host_isa(), host_features(), cost="ms")

    def execute(self, folder: Path, *, timeout_s: float) -> None:
        """Run the runner in a process of its own."""
        command = [sys.executable, "-P", "runner.py", "spec.json", "result.json"]
        # onnxruntime leaves a file in the folder for temporary ones.
        env = {**os.environ, "TMPDIR": str(folder)}
        status, stderr = run_process(
            command, folder, self.traits.name, timeout_s=timeout_s, env=env
        )
        if status and not self.has_result(folder):
            raise ended(self.traits.name, status, stderr)


class LocalKind(DeviceKind):
    """`local`."""

    name = "local"
    summary = "this machine, in a fresh process: milliseconds, memory, answers"

    def missing(self, option: str) -> tuple[Missing, ...]:
        """Nothing."""
        return ()

    def open(self, option: str, settings: Mapping[str, Any]) -> Device:
        """This machine."""
        return Local()


KIND = LocalKind()
