"""Devices with a Python: runner.py goes there with the job, and the result comes back."""

from __future__ import annotations

import json
import tempfile
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter.devices.device import Device, Job, Ran
from exporter.devices.wire import pack, pack_timing, unpack, unpack_timing
from exporter.errors import DeviceError
from exporter.models.examples import Feeds
from exporter.progress import Progress, Silent
from exporter.target import Workload


class PythonDevice(Device):
    """A device on which runner.py runs.

    Attributes:
        marks: True when an emulator counts instructions between the runner's marks.
        link: True when the device sees this machine's files.
    """

    marks = False
    link = False

    @abstractmethod
    def execute(self, folder: Path, *, timeout_s: float) -> None:
        """Run `python -P runner.py spec.json result.json` on a copy of `folder` on the device.

        Its standard input is empty. Afterwards result.json and outputs.npz lie in `folder` here,
        if the runner wrote them, and nothing of it on the device.

        Raises:
            DeviceError: it ended without a result.
        """

    def finished(self, ran: Ran, result: dict[str, Any], folder: Path) -> Ran:
        """What this kind of device makes of a result whose times are as its own clock told them."""
        return ran

    def run(self, job: Job, *, timeout_s: float, progress: Progress | None = None) -> Ran:
        """Do `job` there; see `Device.run`."""
        with (
            (progress or Silent()).stage(
                f"run the {job.model_mib:.3g} MiB model on {self.traits.name}"
            ),
            tempfile.TemporaryDirectory(prefix="exporter-") as temporary,
        ):
            folder = Path(temporary)
            pack(job, folder, marks=self.marks, link=self.link)
            self.execute(folder, timeout_s=timeout_s)
            ran, result = unpack(folder, job, self.traits.name)
            return self.finished(ran, result, folder)

    def time(
        self,
        models: Mapping[str, Path],
        feeds: Feeds,
        workload: Workload,
        *,
        threads: int,
        rounds: int,
        openings: int = 1,
        timeout_s: float,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> dict[str, dict[str, list[float]]]:
        """Time `models` there in one process, each once a round, in an order drawn anew each round.

        Args:
            models: name -> directory with model.onnx.
            feeds: one batch of `workload`; language models take `input_ids` as the prompt.
            openings: times that the models are opened anew on the way.

        Returns:
            model -> phase -> ms by the device's clock, one a round; one index is one round.

        Raises:
            DeviceError: the class says how it ended; also for a device whose time is not time.
        """
        if self.traits.cost != "ms":
            raise DeviceError(
                f"{self.traits.name}: it is emulated, so that its time says nothing; "
                "time on real hardware, such as ssh://user@host."
            )
        with (
            (progress or Silent()).stage(f"time on {self.traits.name}"),
            tempfile.TemporaryDirectory(prefix="exporter-") as temporary,
        ):
            folder = Path(temporary)
            pack_timing(
                models,
                feeds,
                workload,
                folder,
                threads=threads,
                rounds=rounds,
                openings=openings,
                seed=seed,
                link=self.link,
            )
            self.execute(folder, timeout_s=timeout_s)
            return unpack_timing(folder, self.traits.name)

    def has_result(self, folder: Path) -> bool:
        """True when the runner left a result in `folder`, be it an error it could name."""
        try:
            return isinstance(json.loads((folder / "result.json").read_text()), dict)
        except (OSError, ValueError):
            return False
