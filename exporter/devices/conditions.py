"""How busy this machine is and how fast its cores run, before and after a measurement."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

CPUS = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Conditions:
    """What went on around a timing; None where the system does not tell.

    Attributes:
        load_before, load_after: load average over one minute.
        mhz_before, mhz_after: mean clock of the cores.
    """

    load_before: float | None = None
    load_after: float | None = None
    mhz_before: float | None = None
    mhz_after: float | None = None

    @classmethod
    def between(
        cls, before: tuple[float | None, float | None], after: tuple[float | None, float | None]
    ) -> Conditions:
        """Conditions from what `busyness` told before and after."""
        return cls(before[0], after[0], before[1], after[1])


def busyness() -> tuple[float | None, float | None]:
    """Load average over one minute, and mean clock of the cores in MHz."""
    return load_1min(), clock_mhz()


def load_1min() -> float | None:
    """Processes that ran or waited to run, on average over the last minute."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def clock_mhz(cpus: Path = CPUS) -> float | None:
    """Mean clock of the cores now, as the frequency driver or else /proc/cpuinfo tells it.

    In a virtual machine it is usually what the host announced, and stays the same.
    """
    found = []
    for file in sorted(cpus.glob("cpu[0-9]*/cpufreq/scaling_cur_freq")):
        try:
            found.append(int(file.read_text(encoding="ascii")) / 1000)
        except (OSError, ValueError):
            continue  # a core that was taken offline
    if not found:
        try:
            found = [float(value) for value in cpuinfo_all("cpu MHz")]
        except ValueError:
            return None
    return round(sum(found) / len(found), 1) if found else None


def cpuinfo(key: str) -> str:
    """The first value of `key` in /proc/cpuinfo; empty where there is none."""
    return next(iter(cpuinfo_all(key)), "")


def cpuinfo_all(key: str) -> list[str]:
    """Every value of `key` in /proc/cpuinfo, one a core."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [v.strip() for k, _, v in (line.partition(":") for line in lines) if k.strip() == key]
