"""Which devices can be used here, what others lack, and getting that."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from exporter.devices.device import DeviceKind, Missing
from exporter.devices.registry import kind_of, kinds
from exporter.errors import DeviceMissing
from exporter.progress import Progress

WIDTH = 80
_INDENT = 26  # of what stands beside a kind and its state


@dataclass(frozen=True)
class Listed:
    """One kind of device, and what keeps it from being used.

    Attributes:
        names: what can be asked for, the default first; of a device that a client reaches, the
            pattern.
        client: what is known is that its client is here, not that there is a device.
    """

    kind: str
    summary: str
    names: tuple[str, ...]
    missing: tuple[Missing, ...]
    client: bool = False

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "usable": not self.missing}


def listed() -> list[Listed]:
    """Every kind of device, as it stands here."""
    return [
        Listed(
            kind.name,
            kind.summary,
            _names(kind),
            kind.missing(_default(kind)),
            bool(kind.pattern),
        )
        for kind in kinds()
    ]


def install(names: Sequence[str], progress: Progress) -> tuple[str, bool]:
    """Fetch what the named kinds (none: all) need; the outcome in words, and whether it is whole.

    Whole is what was asked for: with names, that each of them is ready; without, that whatever can
    be fetched without root was.

    Raises:
        InputError: a name is unknown.
        DeviceError: a download failed or is not what its hash says.
    """
    chosen = [kind_of(name)[0] for name in names] if names else kinds()
    told, whole = [], True
    for kind in dict.fromkeys(chosen):
        lacks = kind.missing(_default(kind))
        if any(m.installable for m in lacks) or not lacks:
            try:
                kind.install(progress)
            except DeviceMissing as error:
                told.append(f"{kind.name}: {error}")
                whole = whole and not names
                continue
            lacks = kind.missing(_default(kind))
        told += [f"{kind.name}: {m.what} is missing; {m.remedy}" for m in lacks]
        ready = "its client is here; the device must be reached" if kind.pattern else "ready"
        told += [] if lacks else [f"{kind.name}: {ready}"]
        whole = whole and not (lacks if names else [m for m in lacks if m.installable])
    return "\n".join(told), whole


def as_text(rows: Sequence[Listed]) -> str:
    """A few lines a kind: what it is, what it is asked for by, and whether it can be used."""
    lines = []
    for row in rows:
        state = "client is here" if row.client else "usable"
        state = "not usable here" if row.missing else state
        told = [row.summary, " ".join(row.names)]
        told += [f"missing: {m.what}; {m.remedy}" for m in row.missing]
        first, *more = (line for text in told for line in _wrapped(text))
        lines.append(f"{row.kind:<9} {state:<15} {first}")
        lines += [f"{'':<{_INDENT}}{line}" for line in more]
    if any(row.client and not row.missing for row in rows):
        lines += ["", "client is here: whether a device is there too shows when it is asked."]
    return "\n".join(lines)


def _wrapped(text: str) -> list[str]:
    """Lines beside the two columns; a name or a command's word is never cut."""
    return textwrap.wrap(text, WIDTH - _INDENT, break_long_words=False, break_on_hyphens=False)


def _default(kind: DeviceKind) -> str:
    return kind.options[0] if kind.options else ""


def _names(kind: DeviceKind) -> tuple[str, ...]:
    if kind.pattern:
        return (kind.pattern,)
    return tuple(f"{kind.name}:{option}" for option in kind.options) or (kind.name,)
