"""onnxruntime-web: what the devices `wasm` and `browser` have in common, and fetch with npm."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from abc import abstractmethod
from dataclasses import replace
from pathlib import Path

from exporter.devices.device import Device, Job, Missing, Ran
from exporter.devices.process import run_process
from exporter.devices.store import install, installed
from exporter.devices.web_wire import pack_web, unpack_web
from exporter.devices.wire import RESULT, ended
from exporter.errors import DeviceError, DeviceKilled, DeviceMissing, DeviceTimeout
from exporter.progress import Progress, Silent

SCRIPTS = Path(__file__).resolve().with_name("web")
NODE_AT_LEAST = 20
_PACKAGES = ("package.json", "package-lock.json")
_INSTALL_LIMIT_S = 900.0
# Of the 120 MB that the package brings: the library and its WebAssembly for the CPU and for WebGPU.
_KEPT = (
    "ort.wasm.bundle.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.bundle.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)


class WebDevice(Device):
    """A device that runs onnxruntime-web.

    Attributes:
        provider: its execution provider, "wasm" or "webgpu".
    """

    provider = "wasm"

    @abstractmethod
    def execute(self, folder: Path, *, timeout_s: float) -> None:
        """Do the job in `folder`: result.json and outputs.bin lie there afterwards.

        Raises:
            DeviceError: it ended without a result.
        """

    def threads(self, job: Job) -> int:
        """Threads that the session gets."""
        return job.threads

    def run(self, job: Job, *, timeout_s: float, progress: Progress | None = None) -> Ran:
        """Do `job` there; see `Device.run`."""
        name = self.traits.name
        with (
            (progress or Silent()).stage(f"run the {job.model_mib:.3g} MiB model on {name}"),
            tempfile.TemporaryDirectory(prefix="exporter-") as temporary,
        ):
            folder = Path(temporary).resolve()
            if self.traits.cost is None:
                job = replace(job, repeats=0)
            pack_web(job, folder, name, provider=self.provider, threads=self.threads(job))
            self.execute(folder, timeout_s=timeout_s)
            ran = unpack_web(folder, job, name)
            return ran if self.traits.cost else replace(ran, load_cost=None)


def run_node(
    arguments: list[str],
    folder: Path,
    device: str,
    *,
    timeout_s: float,
    temporary: Path | None = None,
) -> None:
    """Run a script of this room in Node; result.json lies in `folder` afterwards.

    Args:
        temporary: where it makes its temporary files and settings; None leaves the usual places.

    Raises:
        DeviceTimeout: it did not end in time.
        DeviceKilled: it was killed, or its heap was full.
        DeviceError: it ended without a result.
    """
    command = [str(shutil.which("node")), *arguments]
    # Options meant for the user's own programs would change what is measured.
    env = {name: value for name, value in os.environ.items() if name != "NODE_OPTIONS"}
    if temporary is not None:
        env |= dict.fromkeys(("TMPDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"), str(temporary))
    status, stderr = run_process(command, folder, device, timeout_s=timeout_s, env=env)
    if (folder / RESULT).is_file():
        return
    if "out of memory" in stderr:
        raise DeviceKilled(f"{device}: Node's memory was full.")
    raise ended(device, status, stderr)


def web_packages() -> Path | None:
    """node_modules as they were installed, or None."""
    found = installed("web", _contents())
    return found and found / "node_modules"


def web_library() -> Path:
    """The folder with the builds of onnxruntime-web.

    Raises:
        DeviceMissing: they are not installed.
    """
    return _packages() / "onnxruntime-web" / "dist"


def playwright() -> Path:
    """The module that drives Chromium.

    Raises:
        DeviceMissing: it is not installed.
    """
    return _packages() / "playwright-core" / "index.mjs"


def missing_node() -> tuple[Missing, ...]:
    """Node, where it is absent or too old."""
    version = _node_version()
    if version is not None and version >= NODE_AT_LEAST:
        return ()
    old = f" (found {version})" if version is not None else ""
    # Debian 12's own is 18, so the distribution alone is not always a remedy.
    return (
        Missing(
            f"Node ≥ {NODE_AT_LEAST} with npm{old}",
            "apt-get install nodejs npm (Debian 13, Ubuntu 25.04 or later; before, from NodeSource)"
            " or brew install node",
        ),
    )


def missing_web(kind: str) -> tuple[Missing, ...]:
    """What this machine lacks to run onnxruntime-web for the device `kind`."""
    lacks = missing_node()
    if web_packages() is None:
        lacks += (
            Missing("onnxruntime-web", f"exporter devices install {kind}", installable=not lacks),
        )
    return lacks


def install_web(kind: str, progress: Progress) -> None:
    """Fetch onnxruntime-web and what drives a browser into the user's cache, by `npm ci`.

    Raises:
        DeviceMissing: Node or npm is missing.
        DeviceError: npm failed: no network, or a package is not what its hash says.
    """
    lacks = missing_node()
    npm = shutil.which("npm")
    if lacks or npm is None:
        what = lacks[0].what if lacks else "npm"
        remedy = lacks[0].remedy if lacks else "apt-get install npm or brew install node"
        raise DeviceMissing(
            f"exporter devices install {kind}", f"needs {what}", remedy=f"run {remedy}."
        )

    def make(folder: Path) -> None:
        for name in _PACKAGES:
            shutil.copyfile(SCRIPTS / name, folder / name)
        quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier"]
        try:
            status, said = run_process(
                [npm, "ci", *quiet], folder, kind, timeout_s=_INSTALL_LIMIT_S
            )
        except DeviceTimeout as error:
            raise DeviceError(
                f"{kind}: npm ci did not finish in {_INSTALL_LIMIT_S:.0f} s; "
                "check the network and npm's registry setting."
            ) from error
        if status:
            raise DeviceError(f"{kind}: npm ci failed: {said.strip()[:500]}")
        dist = folder / "node_modules" / "onnxruntime-web" / "dist"
        for path in dist.iterdir():
            if path.name not in _KEPT:
                path.unlink()

    install("web", _contents(), make, progress.stage(f"install {kind}"))


def _packages() -> Path:
    found = web_packages()
    if found is None:
        raise DeviceMissing(
            "onnxruntime-web", "is not installed", remedy="run exporter devices install wasm."
        )
    return found


def _contents() -> dict[str, str]:
    lock = (SCRIPTS / "package-lock.json").read_bytes()
    return {"lock": hashlib.sha256(lock).hexdigest(), "kept": " ".join(_KEPT)}


def _node_version() -> int | None:
    """Node's major version, or None where there is no Node."""
    node = shutil.which("node")
    if node is None:
        return None
    try:
        said = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.match(r"v(\d+)\.", said.stdout)
    return int(found[1]) if found else None
