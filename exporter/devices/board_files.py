"""What an emulated board consists of, in the user's cache: emulator, kernel, initrd, system image.

All of it is Debian's own, fetched without root.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.cache import sha256_file
from exporter.devices import arm64
from exporter.devices.debian import fetch, has_apt, unpack
from exporter.devices.device import Missing
from exporter.devices.initrd import initrd, modules_for
from exporter.devices.programs import install_programs, program_command
from exporter.devices.qemu_user import ENVIRONMENT
from exporter.devices.store import install, installed
from exporter.errors import DeviceDisk, DeviceError, DeviceMissing
from exporter.progress import Progress

INSTALL = "exporter devices install board"
SCRIPT = Path(__file__).resolve().with_name("board_init.sh")
PROGRAMS = ("qemu-system-aarch64", "mke2fs", "debugfs")
PACKAGES = ("qemu-system-arm", "e2fsprogs")
# Debian's name for its newest kernel without drivers of hardware, and what is in a board's archive.
KERNEL, BUSYBOX = "linux-image-cloud-arm64", "busybox-static"
MODULES = ("nd_pmem", "of_pmem")
PYTHON = {"PYTHONHOME": "/usr", "PYTHONPATH": "/site", "HOME": "/job", "TMPDIR": "/job"}
# Two images of the same files are the same bytes.
_UUID = "6d1f0a52-3b1e-4a53-9c0f-5f3a4d7c2e11"
_MIB = 1 << 20
# File systems put beside files: tables of inodes and of blocks.
_OVERHEAD, _OVERHEAD_MIB = 1.02, 4
_COMMAND_S = 300


@dataclass(frozen=True)
class BoardFiles:
    """An installation.

    Attributes:
        folder: where it lies.
    """

    folder: Path

    @property
    def kernel(self) -> Path:
        """Linux for arm64."""
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """What it starts from."""
        return self.folder / "initrd"

    @property
    def system(self) -> Path:
        """ext4 image of the userland, with Python and onnxruntime."""
        return self.folder / "system.ext4"

    @property
    def about(self) -> dict[str, Any]:
        """The versions of what is in it, JSON-ready."""
        found: dict[str, Any] = json.loads((self.folder / "about.json").read_text("utf-8"))
        return found

    def command(self, program: str) -> list[str]:
        """The command that starts one of `PROGRAMS`."""
        return program_command(self.folder / "programs", program)


def missing_board() -> tuple[Missing, ...]:
    """What of it is not here."""
    if board_files() is not None:
        return ()
    if not has_apt():
        return arm64.KIND.missing(arm64.KIND.options[0])
    lacks = tuple(m for m in arm64.KIND.missing(arm64.KIND.options[0]) if not m.installable)
    return (Missing("an emulated board", INSTALL, installable=True), *lacks)


def board_files() -> BoardFiles | None:
    """The installation, or None."""
    userland = arm64.installed_root()
    found = userland and installed("board", _contents(userland))
    return BoardFiles(found) if found else None


def install_board(progress: Progress) -> None:
    """Fetch and make it, and the userland of `arm64`, whose Python it is.

    Raises:
        DeviceError: a download failed.
        DeviceMissing: there is no apt, or its sources lack a package.
    """
    arm64.KIND.install(progress)
    userland = arm64.installed_root()
    assert userland is not None
    stage = progress.stage("fetch the board")
    install("board", _contents(userland), lambda folder: _make(folder, userland), stage)


def make_image(
    files: BoardFiles, image: Path, contents: Path, *, free_mib: int = 0, inodes: int | None = None
) -> int:
    """Make `image`, an ext4 file system with the files in `contents`; its size in MiB, even.

    Raises:
        DeviceDisk: there is no room for it here.
        DeviceError: it failed otherwise.
    """
    bytes_ = sum(p.stat().st_size for p in contents.rglob("*") if not p.is_symlink())
    size_mib = int(bytes_ / _MIB * _OVERHEAD) + _OVERHEAD_MIB + free_mib
    size_mib += size_mib % 2  # the kernel maps storage in steps of 2 MiB
    command = [*files.command("mke2fs"), "-q", "-F", "-t", "ext4", "-O", "^has_journal"]
    command += ["-b", "4096", "-m", "0", "-U", _UUID, "-E", f"root_owner=0:0,hash_seed={_UUID}"]
    command += [] if inodes is None else ["-N", str(inodes)]
    command += ["-d", str(contents), str(image), f"{size_mib}M"]
    _tool(files, command)
    return size_mib


def copy_out(files: BoardFiles, image: Path, name: str, target: Path) -> None:
    """Copy the file `name` of the root folder of `image`, if it is there, to `target`."""
    quoted = str(target).replace('"', '""')
    request = f'dump "/{name}" "{quoted}"'
    _tool(files, [*files.command("debugfs"), "-R", request, str(image)])


def _tool(files: BoardFiles, command: list[str]) -> str:
    """Run one of `PROGRAMS`; what it says.

    Raises:
        DeviceDisk: there is no room.
        DeviceError: it failed otherwise.
    """
    configuration = next((files.folder / "programs").rglob("mke2fs.conf"), Path("/dev/null"))
    env = {"LC_ALL": "C", "MKE2FS_CONFIG": str(configuration), "E2FSPROGS_FAKE_TIME": "1"}
    done = subprocess.run(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_COMMAND_S,
    )
    if done.returncode:
        kind = DeviceDisk if "No space left" in done.stderr else DeviceError
        raise kind(f"board: {done.stderr.strip()[-300:] or 'the image cannot be made'}")
    return done.stdout


def _contents(userland: Path) -> Mapping[str, Any]:
    return {
        "packages": (*PACKAGES, KERNEL, BUSYBOX),
        "modules": MODULES,
        "script": sha256_file(SCRIPT),
        "environment": _environment(),
        "userland": userland.name,
        "layout": 1,
    }


def _environment() -> str:
    return " ".join(f"{name}={value}" for name, value in (ENVIRONMENT | PYTHON).items())


def _make(folder: Path, userland: Path) -> None:
    install_programs(folder / "programs", PACKAGES, (*PROGRAMS, "mke2fs.conf"))
    packages = folder / "packages"
    unpack([*_kernel(), *fetch([BUSYBOX], "arm64", dependencies=False)], packages)
    kernel = next(packages.rglob("vmlinuz-*"), None)
    busybox = next((p for p in packages.rglob("busybox") if "bin" in p.parts), None)
    if kernel is None or busybox is None:
        raise DeviceError(f"board: {KERNEL} has no kernel, or {BUSYBOX} no program.")
    files = BoardFiles(folder)
    kernel.rename(files.kernel)
    try:
        modules = modules_for(packages, MODULES)
    except FileNotFoundError as error:
        raise DeviceMissing(
            "board", f"{error}, which the board's storage needs", remedy="use Debian 12 or newer."
        ) from error
    script = SCRIPT.read_text(encoding="utf-8").replace("ENVIRONMENT", _environment())
    files.initrd.write_bytes(initrd(busybox.read_bytes(), script, modules))
    shutil.rmtree(packages)
    make_image(files, files.system, userland / "system")
    # Where other file systems go: the image itself is only read.
    for name in ("dev", "job", "proc", "sys"):
        request = ["-w", "-R", f"mkdir {name}", str(files.system)]
        _tool(files, [*files.command("debugfs"), *request])
    said = _tool(files, [*files.command("qemu-system-aarch64"), "--version"])
    about = {
        "emulator": said.partition("\n")[0],
        "kernel": kernel.name.removeprefix("vmlinuz-"),
        "modules": list(modules),
        "userland": userland.name,
    }
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")


def _kernel() -> list[Path]:
    """The package that the one for the newest kernel depends on, without what that depends on."""
    (newest,) = fetch([KERNEL], "arm64", dependencies=False)
    done = subprocess.run(
        ["dpkg-deb", "--field", str(newest), "Depends"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_COMMAND_S,
    )
    names = [part.split()[0] for part in done.stdout.split(",") if part.strip()]
    images = [name for name in names if name.startswith("linux-image-")]
    if not images:
        raise DeviceError(f"board: {newest.name} names no kernel; apt's sources are damaged.")
    return fetch(images, "arm64", dependencies=False)
