"""What a kernel starts from: an archive with one program, the modules it needs, and a script."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Mapping, Sequence
from pathlib import Path

FOLDERS = ("bin", "dev", "modules", "proc", "sys", "system", "tmp")
# Applets of busybox that the script calls.
APPLETS = (
    *("cat", "chroot", "env", "insmod", "mount", "poweroff", "rm", "sh", "sleep", "tail"),
    *("umount", "uname"),
)
_FOLDER, _FILE, _LINK, _DEVICE = 0o40755, 0o100644, 0o120777, 0o20600


def initrd(busybox: bytes, script: str, modules: Mapping[str, bytes]) -> bytes:
    """A compressed cpio archive whose /init is `script`; the same bytes each time.

    Args:
        modules: name -> kernel module, in the order in which they must be loaded; they lie in
            /modules, and their names in /modules/order.
    """
    archive = _Archive()
    for name in FOLDERS:
        archive.add(name, _FOLDER)
    # The kernel opens it for the script before anything is mounted. Written here rather than made
    # in a folder first, which would take root.
    archive.add("dev/console", _DEVICE, device=(5, 1))
    archive.add("bin/busybox", _FILE | 0o111, busybox)
    for name in APPLETS:
        archive.add(f"bin/{name}", _LINK, b"busybox")
    for name, module in modules.items():
        archive.add(f"modules/{name}", _FILE, module)
    archive.add("modules/order", _FILE, "\n".join(modules).encode())
    archive.add("init", _FILE | 0o111, script.encode())
    archive.add("TRAILER!!!", 0)
    return gzip.compress(bytes(archive.data), mtime=0)


def modules_for(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    """The kernel modules `names` below `folder` and all they need, those first.

    Raises:
        FileNotFoundError: one is not there.
    """
    found: dict[str, bytes] = {}

    def need(name: str) -> None:
        if f"{name}.ko" in found:
            return
        # Modules are called by either spelling.
        paths = [p for n in (name, name.replace("_", "-")) for p in folder.rglob(f"{n}.ko*")]
        if not paths:
            raise FileNotFoundError(f"the kernel has no module {name}")
        module = paths[0].read_bytes()
        if paths[0].suffix == ".xz":
            module = lzma.decompress(module)
        at = module.find(b"\0depends=") + 1
        needed = module[at + 8 : module.index(b"\0", at)].decode() if at else ""
        for other in filter(None, needed.split(",")):
            need(other)
        found[f"{name}.ko"] = module

    for name in names:
        need(name)
    return found


class _Archive:
    """The format `newc` of cpio(5), which the kernel unpacks."""

    def __init__(self) -> None:
        self.data, self._files = bytearray(), 0

    def add(
        self, name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        """Add one file, owned by root and of no age."""
        self._files += 1
        path = name.encode() + b"\0"
        numbers = (self._files, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(path), 0)
        self.data += b"070701" + b"".join(b"%08x" % number for number in numbers) + path
        self._align()
        self.data += content
        self._align()

    def _align(self) -> None:
        self.data += b"\0" * (-len(self.data) % 4)
