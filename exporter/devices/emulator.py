"""QEMU in user mode, and the plugin that counts instructions, in the user's cache.

The emulator comes with all libraries it needs and is started by its own loader, so that neither
the age nor the packages of this machine matter, and its counts are the same on all of them.
"""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path

from exporter.cache import sha256_file
from exporter.devices.debian import fetch, has_apt, host_architecture, unpack
from exporter.devices.device import Missing
from exporter.devices.store import install, installed
from exporter.errors import DeviceError, DeviceMissing
from exporter.progress import Progress

PACKAGES = ("qemu-user",)
GUESTS = ("aarch64", "x86_64")  # of the many that come in the package
PLUGIN = Path(__file__).resolve().with_name("count.c")
_CONTENTS = {"packages": PACKAGES, "guests": GUESTS, "layout": 1}
_NO_APT = Missing(
    "apt-get, which fetches Debian's packages", "exporter on a Debian or Ubuntu machine"
)


def missing_emulator(remedy: str) -> tuple[Missing, ...]:
    """The emulator if it is not there.

    Args:
        remedy: the command that fetches it.
    """
    if installed("qemu-user", _CONTENTS):
        return ()
    return (Missing("the emulator qemu-user", remedy, installable=True) if has_apt() else _NO_APT,)


def install_emulator(progress: Progress) -> None:
    """Fetch QEMU and compile the plugin; without a compiler there are no counts.

    Raises:
        DeviceError: a download failed.
        DeviceMissing: there is no apt.
    """
    install("qemu-user", _CONTENTS, _emulator, progress.stage("fetch the emulator"))
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        progress.note(
            "no C compiler, so instructions are not counted; "
            "run apt-get install gcc and install again to have costs."
        )
        return
    try:
        install("qemu-count", _plugin_contents(), lambda folder: _plugin(compiler, folder))
    except DeviceError as error:
        progress.note(f"instructions are not counted: {error}")


def emulator_command(guest: str) -> list[str]:
    """The command that starts qemu-`guest`.

    Raises:
        DeviceMissing: it is not installed.
    """
    root = installed("qemu-user", _CONTENTS)
    if root is None:
        raise DeviceMissing(
            f"qemu-{guest}", "is not installed", remedy="run exporter devices install."
        )
    loader = next(p for p in sorted(root.rglob("ld-linux-*.so.*")) if not p.is_symlink())
    libraries = sorted({str(p.parent) for p in root.rglob("lib*.so.*")})
    program = str(root / "usr" / "bin" / f"qemu-{guest}")
    return [*_fixed_addresses(), str(loader), "--library-path", ":".join(libraries), program]


def plugin_options() -> list[str] | None:
    """Options that count into counts.txt of the working directory; None: nothing can count."""
    found = installed("qemu-count", _plugin_contents())
    if found is None:
        return None
    library = str(found / "count.so").replace(",", ",,")
    return ["-plugin", f"{library},out=counts.txt"]


def read_counts(path: Path) -> dict[int, dict[str, int]]:
    """Mark -> class of instructions -> how many had run by then, since the guest's start."""
    counts = {}
    for line in path.read_text(encoding="ascii").splitlines():
        mark, *numbers = map(int, line.split())
        classes = ("all", "dot_product", "matrix_multiply", "saturating_pair")
        counts[mark] = dict(zip(classes, numbers, strict=True))
    return counts


def emulator_version(guest: str) -> str:
    """What it says of itself, such as `qemu-aarch64 version 7.2.22 (Debian 1:7.2+dfsg-7)`."""
    return _said((*emulator_command(guest), "--version")).partition("\n")[0]


@cache
def _said(command: tuple[str, ...]) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout


def _emulator(folder: Path) -> None:
    packages = folder / "packages"
    unpack(fetch(PACKAGES, host_architecture(), dependencies=True), packages)
    keep = [packages / "usr" / "bin" / f"qemu-{guest}" for guest in GUESTS]
    keep += packages.rglob("*.so.*")
    for path in keep:
        target = folder / path.relative_to(packages)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_symlink() or not Path(path.readlink()).is_absolute():
            path.rename(target)
    shutil.rmtree(packages)


def _plugin_contents() -> dict[str, object]:
    return {"source": sha256_file(PLUGIN), "emulator": _CONTENTS}


def _plugin(compiler: str, folder: Path) -> None:
    """Compile the plugin, and see that the emulator takes it: QEMU 9 has another interface."""
    library = folder / "count.so"
    command = [compiler, "-O2", "-fPIC", "-shared", "-fvisibility=hidden"]
    done = subprocess.run(
        [*command, "-o", str(library), str(PLUGIN)], capture_output=True, text=True, timeout=60
    )
    if done.returncode:
        raise DeviceError(f"{compiler}: {PLUGIN.name} does not compile: {done.stderr[-300:]}")
    counts = folder / "probe"
    # It opens its output before the emulator finds that this is no program.
    probe = ["-plugin", f"{str(library).replace(',', ',,')},out={counts}", "/dev/null"]
    said = subprocess.run(
        [*emulator_command(GUESTS[0]), *probe], capture_output=True, text=True, timeout=60
    )
    if not counts.is_file():
        raise DeviceError(f"the emulator does not take the plugin: {said.stderr.strip()[-300:]}")
    counts.unlink()


@cache
def _fixed_addresses() -> tuple[str, ...]:
    """`setarch -R`, where this machine permits it: containers may not."""
    setarch = shutil.which("setarch")
    if setarch is None:
        return ()
    done = subprocess.run([setarch, "-R", "true"], capture_output=True, timeout=60)
    return () if done.returncode else (setarch, "-R")
