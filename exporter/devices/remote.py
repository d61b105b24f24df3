"""Real devices at the far end of one command, such as ssh: carrier.py goes there with each job."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from exporter.devices import carrier
from exporter.devices.device import Ran, Traits
from exporter.devices.host import features_of, isa_of
from exporter.devices.process import overdue
from exporter.devices.python_device import PythonDevice
from exporter.devices.wire import OUTPUTS, RESULT, ended, told
from exporter.errors import DeviceError, DeviceLost, DeviceMissing, ExporterError

PROBE_S = 30.0
GRACE_S = 10.0  # for a device to tell that the time is over
# Reads carrier.py from standard input, so that nothing lies on the device before it. It stands in
# single quotes in whatever shell the device's user has; `|| exit` makes that shell wait, and tell
# a signal as 128 + N.
_START = (
    "import sys; sys.path = [p for p in sys.path if p]; v = sys.version_info[:2]; "
    'v < (3, 10) and sys.exit("exporter needs Python 3.10 or newer, this is %d.%d" % v); '
    "n = int(sys.stdin.buffer.readline()); "
    'exec(compile(sys.stdin.buffer.read(n), "carrier.py", "exec"), {"__name__": "__main__"})'
)
_NO_SUCH_COMMAND = (126, 127)
_NAME_PYTHON = "name its interpreter: --python PATH, or python in the profile's entry"
_ALARMED = 128 + signal.SIGALRM  # the carrier's time was over before the runner began


@dataclass
class _Heard:
    """What came over one connection.

    Attributes:
        hello, end: frames of the carrier; see there.
        status: exit status of the command that connects.
        stderr: what it printed.
        stopped: it was stopped here because the time was over.
    """

    hello: dict[str, Any] | None = None
    end: dict[str, Any] | None = None
    status: int = 0
    stderr: str = ""
    stopped: threading.Event = field(default_factory=threading.Event)


class RemoteDevice(PythonDevice):
    """A device that a command reaches, which gives it a shell command and a stream both ways.

    Attributes:
        python: command line of its interpreter, for its own shell.
        tmp: folder there that gets the job's; None takes the system's.
    """

    link = True  # the files behind symbolic links are what is sent

    def __init__(self, name: str, settings: Mapping[str, Any], *, tmp: str | None = None) -> None:
        self.traits = Traits(name, name, "", cost="ms")
        self.python = str(settings.get("python") or "python3")
        self.tmp = settings.get("tmp") or tmp
        self.facts: dict[str, Any] = {}

    @abstractmethod
    def command(self, remote: str) -> Sequence[str]:
        """What runs the shell command `remote` there and is connected to it, here."""

    @abstractmethod
    def unreached(self, status: int, stderr: str) -> ExporterError | None:
        """Why the device was not reached; None when the reason is not the connection's."""

    def probe(self) -> None:
        """Connect, and take over what the device tells of itself.

        Raises:
            DeviceMissing: it is not reached, or lacks Python, onnxruntime or numpy.
            DeviceError: it does not answer as it should.
        """
        heard = self._talk(None, [], None, PROBE_S)
        if heard.hello is None:
            raise self._silent(heard, PROBE_S)
        hello = heard.hello
        self._has_runtime(hello)
        isa = isa_of(hello["machine"])
        title = hello["cpu"] or hello["machine"]
        features = features_of(isa, hello["flags"])
        self.traits = replace(self.traits, title=title, isa=isa, features=features)
        self.facts = {key: hello[key] for key in ("cpu", "cores", "memory_mib", "os")}

    def execute(self, folder: Path, *, timeout_s: float) -> None:
        """Send `folder`, run the runner there and fetch what it wrote, in one connection."""
        name = self.traits.name
        sent = sorted(path for path in folder.rglob("*") if path.is_file())
        heard = self._talk(folder, sent, [RESULT, OUTPUTS], timeout_s)
        if heard.hello is None:
            raise self._silent(heard, timeout_s)
        self._has_runtime(heard.hello)
        if heard.end is None:
            if heard.stopped.is_set() or heard.status == _ALARMED:
                raise overdue(name, timeout_s)
            # What was killed there could not clean up after itself; the next carrier does.
            with contextlib.suppress(ExporterError):
                self._talk(None, [], None, PROBE_S)
            if heard.status > 128 and heard.status != 255:
                raise ended(name, heard.status, heard.stderr)
            raise DeviceLost(
                f"{name}: the connection broke while it worked "
                f"({last_line(heard.stderr) or 'nothing was said'}); the device removes "
                "what it was sent. Check its power and network, and run again."
            )
        if heard.end.get("error"):
            raise told(name, heard.end["error"])
        if not self.has_result(folder):
            if heard.end["timeout"]:
                raise overdue(name, timeout_s)
            raise ended(name, heard.end["status"], heard.end["printed"])

    def finished(self, ran: Ran, result: dict[str, Any], folder: Path) -> Ran:
        """With what the device told of itself."""
        return replace(ran, facts={**ran.facts, **self.facts})

    def _has_runtime(self, hello: Mapping[str, Any]) -> None:
        lacks = [name for name in ("onnxruntime", "numpy") if hello[name] is None]
        if lacks:
            # PyPI has no build for Android; Termux has its own.
            pip = f"{self.python} -m pip install onnxruntime numpy"
            command = "pkg install python-numpy python-onnxruntime" if hello["android"] else pip
            raise DeviceMissing(
                self.traits.name,
                f"its Python {hello['python']} must have onnxruntime and numpy",
                got=f"no {' and no '.join(lacks)}",
                remedy=f"run there: {command}; or make a virtual environment there that has them, "
                f"and {_NAME_PYTHON}.",
            )

    def _silent(self, heard: _Heard, timeout_s: float) -> ExporterError:
        """Why the carrier did not even say hello."""
        name, last = self.traits.name, last_line(heard.stderr)
        if heard.stopped.is_set():
            return overdue(name, timeout_s)
        if (reason := self.unreached(heard.status, heard.stderr)) is not None:
            return reason
        if "exporter needs Python" in last or heard.status in _NO_SUCH_COMMAND:
            return DeviceMissing(
                name,
                f"`{self.python}` must start Python 3.10 or newer there",
                got=last or f"exit code {heard.status}",
                remedy=f"install one, or {_NAME_PYTHON}.",
            )
        return ended(name, heard.status, heard.stderr)

    def _talk(
        self, folder: Path | None, sent: list[Path], back: list[str] | None, timeout_s: float
    ) -> _Heard:
        """One connection: send the carrier and the files `sent`, all in `folder`, and listen.

        Files of the names `back` are written into `folder`. Returns when the other side is done,
        the connection broke or `timeout_s` and GRACE_S are over; none of its processes is left.
        """
        files = [
            [path.relative_to(folder or path).as_posix(), path.stat().st_size] for path in sent
        ]
        job = {"tmp": self.tmp, "timeout_s": timeout_s, "back": back}
        job["files"] = files if folder else None
        source = Path(carrier.__file__).read_bytes()
        head = b"%d\n%s%s\n" % (len(source), source, json.dumps(job).encode())
        heard = _Heard()
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                self.command(f"{self.python} -c '{_START}' || exit"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # No pipe: a connection that ssh keeps for later would hold it open.
                stderr=errors,
                start_new_session=True,
            )
            assert process.stdin is not None
            assert process.stdout is not None

            def stop() -> None:
                heard.stopped.set()
                _kill(process)

            limit = threading.Timer(timeout_s + GRACE_S, stop)
            writer = threading.Thread(target=_write, args=(process.stdin, head, sent), daemon=True)
            limit.start()
            writer.start()
            try:
                for frame in _frames(process.stdout, folder, back or []):
                    if frame["frame"] == "hello":
                        heard.hello = frame
                    elif frame["frame"] == "end":
                        heard.end = frame
                        break
                    if folder is None:
                        break
                if heard.end is None and heard.hello is None:
                    process.wait()  # for its exit status; the timer bounds it
                else:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(1)
            finally:
                limit.cancel()
                _kill(process)
                heard.status = process.wait()
                writer.join()
                for stream in (process.stdin, process.stdout):
                    with contextlib.suppress(OSError):
                        stream.close()
            errors.seek(0)
            heard.stderr = errors.read().decode("utf-8", "replace")
        return heard


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _write(stream: IO[bytes], head: bytes, sent: list[Path]) -> None:
    """Send it all, and leave the stream open: its end would end the job."""
    with contextlib.suppress(BrokenPipeError):
        stream.write(head)
        for path in sent:
            with path.open("rb") as file:
                shutil.copyfileobj(file, stream, carrier.CHUNK)
        stream.flush()


def _frames(stream: IO[bytes], folder: Path | None, back: list[str]) -> Iterator[dict[str, Any]]:
    """The carrier's frames, the files among them written to `folder`; ends when the stream does.

    Raises:
        DeviceError: the other side sends a file that was not asked for, or what is no frame.
    """
    for line in stream:
        # A login script that prints something comes first.
        if not line.startswith(carrier.START) or not line.endswith(b"\n"):
            continue
        try:
            frame: dict[str, Any] = json.loads(line[len(carrier.START) :])
        except ValueError as error:
            raise DeviceError(f"what the device sent is damaged: {line[:80]!r}") from error
        if frame["frame"] == "file":
            if folder is None or frame["name"] not in back:
                raise DeviceError(f"the device sent a file that no one asked for: {frame['name']}")
            with (folder / frame["name"]).open("wb") as file:
                left = frame["size"]
                while left and (chunk := stream.read(min(left, carrier.CHUNK))):
                    file.write(chunk)
                    left -= len(chunk)
        yield frame


def last_line(text: str) -> str:
    """The last line of `text` with something in it; "" when there is none."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
