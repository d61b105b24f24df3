"""What a board is started with, byte by byte; needs no emulator."""

from __future__ import annotations

import gzip
import re
import struct
from pathlib import Path
from typing import Any

import pytest

from exporter.devices.device import Job, Ran
from exporter.devices.devicetree import with_storage
from exporter.devices.initrd import initrd, modules_for
from exporter.devices.smallest import smallest_memory
from exporter.errors import DeviceKilled


def _tree(*properties: tuple[str, bytes]) -> bytes:
    """A device tree whose root has a node `chosen` with `properties`."""
    names, tokens = b"", struct.pack(">I4x", 1) + struct.pack(">I", 1) + b"chosen\0\0"
    for name, value in properties:
        tokens += struct.pack(">III", 3, len(value), len(names))
        tokens += value + b"\0" * (-len(value) % 4)
        names += name.encode() + b"\0"
    tokens += struct.pack(">III", 2, 2, 9)
    at = 40 + 16
    total = at + len(tokens) + len(names)
    numbers = (0xD00DFEED, total, at, at + len(tokens), 40, 17, 16, 0, len(names), len(tokens))
    return struct.pack(">10I", *numbers) + bytes(16) + tokens + names


def test_a_tree_gets_storage_and_loses_its_seeds() -> None:
    secret = b"\xabseed\xab"
    tree = _tree(("kaslr-seed", secret), ("bootargs", b"quiet\0"), ("rng-seed", secret))
    changed = with_storage(tree, [(0x5000_0000, 0x20_0000)])
    assert secret in tree
    assert secret not in changed
    assert b"quiet\0" in changed
    assert b"pmem@50000000\0" in changed
    assert struct.pack(">QQ", 0x5000_0000, 0x20_0000) in changed
    total, at, names, *_ = struct.unpack_from(">3I", changed, 4)
    assert total == len(changed)
    assert changed[at : at + 8] == tree[56:64]
    assert changed[names:].endswith(b"compatible\0reg\0")


@pytest.mark.parametrize("blob", [bytes(64), _tree()[:-8] + struct.pack(">II", 2, 7)])
def test_what_is_no_tree_is_refused(blob: bytes) -> None:
    with pytest.raises(ValueError, match="device tree"):
        with_storage(blob, [])


def test_an_archive_has_all_that_starts_and_the_same_each_time() -> None:
    made = initrd(b"program", "#!/bin/sh\n", {"b.ko": b"needed", "a.ko": b"needs it"})
    assert made == initrd(b"program", "#!/bin/sh\n", {"b.ko": b"needed", "a.ko": b"needs it"})
    # cpio(5): magic, 13 numbers of 8 digits, the name.
    names = re.findall(rb"070701[0-9a-f]{104}([^\0]+)\0", gzip.decompress(made))
    assert names[-1] == b"TRAILER!!!"
    assert {b"init", b"dev/console", b"bin/busybox", b"bin/sh", b"modules/a.ko"} <= set(names)


def test_modules_come_after_those_they_need(tmp_path: Path) -> None:
    (tmp_path / "low.ko").write_bytes(b"x\0depends=\0")
    (tmp_path / "mid-dle.ko").write_bytes(b"x\0depends=low\0")
    (tmp_path / "high.ko").write_bytes(b"x\0depends=mid_dle,low\0")
    assert list(modules_for(tmp_path, ["high"])) == ["low.ko", "mid_dle.ko", "high.ko"]
    with pytest.raises(FileNotFoundError, match="no module missing"):
        modules_for(tmp_path, ["missing"])


@pytest.mark.parametrize("needed", [64, 65, 100, 176, 300, 512])
def test_the_search_ends_at_the_smallest_that_is_not_killed(needed: int, tmp_path: Path) -> None:
    class Fake:
        def __init__(self, memory_mib: int) -> None:
            self.memory_mib = memory_mib

        def run(self, job: Job, **options: Any) -> Ran:
            if self.memory_mib < needed:
                raise DeviceKilled("killed")
            return Ran(peak_mib=90.0, facts={"guest_s": 1.0})

    def factory(settings: Any) -> Any:
        return Fake(settings["memory_mib"])

    found = smallest_memory(factory, Job(tmp_path), 64, 512, timeout_s=9)
    assert found == 64 + -(-(needed - 64) // 16) * 16
    assert smallest_memory(factory, Job(tmp_path), 32, needed - 1, timeout_s=9) is None
