"""A job that works until it is stopped, and how it ends when something is done meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from exporter.devices.device import Device, Job
from tests.devices.graphs import product

X = {"x": np.arange(256, dtype=np.float32)[None]}


def endless_job(folder: Path) -> Job:
    """A job whose workload is run a billion times."""
    return Job(product(folder / "m", 256).directory, feeds=X, repeats=10**9)


def ending_of(
    device: Device, job: Job, act: Callable[[], object], timeout_s: float = 30
) -> BaseException | None:
    """What `job` raised when `act` was done while it worked."""
    caught: list[BaseException] = []

    def work() -> None:
        try:
            device.run(job, timeout_s=timeout_s)
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    act()
    thread.join(30)
    return caught[0] if caught else None
