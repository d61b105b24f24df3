"""The device tree that tells a kernel what a machine has, in the format of dtspec v0.4, chapter 5.

QEMU writes one for its machine. Two things are changed in it: seeds for the kernel are taken out,
so that each boot is like the last, and storage that lies in memory is put in.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

_BEGIN, _END, _PROPERTY, _NOP, _LAST = 1, 2, 3, 4, 9
_SEEDS = ("rng-seed", "kaslr-seed")


def with_storage(blob: bytes, regions: Sequence[tuple[int, int]]) -> bytes:
    """The device tree `blob` with a `pmem-region` for each region, and without seeds.

    Args:
        regions: (address, size) in bytes.

    Raises:
        ValueError: it is no device tree.
    """
    magic, _, structure, strings, reserved, version, last, cpu, strings_size, size = struct.unpack(
        ">10I", blob[:40]
    )
    if magic != 0xD00DFEED:
        raise ValueError("no device tree")
    names = blob[strings : strings + strings_size]
    tokens = _without_seeds(blob[structure : structure + size], names)
    end = struct.pack(">II", _END, _LAST)  # of the root, and of all
    if not tokens.endswith(end):
        raise ValueError("a device tree that does not end with its root")
    tokens = tokens[: -len(end)]
    for address, bytes_ in regions:
        tokens += _text(_BEGIN, f"pmem@{address:x}")
        for name, value in (
            (b"compatible\0", b"pmem-region\0"),
            (b"reg\0", struct.pack(">QQ", address, bytes_)),
        ):
            tokens += _padded(struct.pack(">III", _PROPERTY, len(value), len(names)) + value)
            names += name
        tokens += struct.pack(">I", _END)
    tokens += end
    kept = _reserved(blob[reserved:])
    at_tokens = 40 + len(kept)
    at_names = at_tokens + len(tokens)
    total = at_names + len(names)
    return (
        struct.pack(
            ">10I",
            *(magic, total, at_tokens, at_names, 40, version, last, cpu, len(names), len(tokens)),
        )
        + kept
        + tokens
        + names
    )


def _without_seeds(tokens: bytes, names: bytes) -> bytes:
    """`tokens` up to the last one, with NOPs where seeds were."""
    out, at = bytearray(tokens), 0
    while True:
        (token,) = struct.unpack_from(">I", tokens, at)
        start, at = at, at + 4
        if token == _BEGIN:
            at += -(-(tokens.index(b"\0", at) + 1 - at) // 4) * 4
        elif token == _PROPERTY:
            length, name = struct.unpack_from(">II", tokens, at)
            at += 8 + -(-length // 4) * 4
            if names[name : names.index(b"\0", name)].decode() in _SEEDS:
                out[start:at] = struct.pack(">I", _NOP) * ((at - start) // 4)
        elif token == _LAST:
            return bytes(out[:at])
        elif token not in (_END, _NOP):
            raise ValueError(f"a device tree with the token {token}")


def _reserved(block: bytes) -> bytes:
    """The list of reserved memory at the start of `block`, which ends with a pair of zeros."""
    end = 0
    while any(block[end : end + 16]):
        end += 16
    return block[: end + 16]


def _text(token: int, text: str) -> bytes:
    return _padded(struct.pack(">I", token) + text.encode() + b"\0")


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
