"""Programs from Debian's packages with all the libraries they need, run by their own loader.

So neither the age nor the packages of this machine matter to them, and none needs root.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from exporter.devices.debian import fetch, host_architecture, unpack


def install_programs(folder: Path, packages: Sequence[str], names: Sequence[str]) -> None:
    """Fetch `packages` and keep of them, in `folder`, all shared libraries and the files `names`.

    Args:
        names: such as `mke2fs`, wherever it lies.

    Raises:
        DeviceError: a download failed.
        DeviceMissing: apt is not here, or does not offer a package.
    """
    whole = folder / "packages"
    unpack(fetch(packages, host_architecture(), dependencies=True), whole)
    libraries = [*whole.rglob("lib*.so*"), *whole.rglob("ld-linux*.so.*")]
    # Of the same name there are also scripts for shells.
    named = (p for name in names for p in whole.rglob(name) if "share" not in p.parts)
    for path in [*libraries, *named]:
        target = folder / path.relative_to(whole)
        # The loader of some packages is a link to where it would lie in /.
        if path.is_symlink() and path.readlink().is_absolute():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    shutil.rmtree(whole)


def program_command(folder: Path, name: str) -> list[str]:
    """The command that starts the program `name`, such as `mke2fs`, of `folder`."""
    loader = next(p for p in sorted(folder.rglob("ld-linux*.so.*")) if not p.is_symlink())
    libraries = sorted({str(p.parent) for p in folder.rglob("lib*.so.*")})
    program = next(iter(folder.rglob(name)))
    return [str(loader), "--library-path", ":".join(libraries), str(program)]
