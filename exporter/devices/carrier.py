"""The far end of a remote device: takes a job from one stream, runs it, sends the result back.

It travels to the device with every job, as source on standard input, and needs nothing there but
Python ≥ 3.10 and its standard library. All that goes in, after this source:

    {"tmp": FOLDER or null, "timeout_s": S, "files": [[PATH, BYTES], ...] or null,
     "back": [NAME, ...]} as one line, then the bytes of the files one after the other.

What comes out are frames: START, a JSON object, a line end, and for a file its bytes.

    {"frame": "hello", ...}                      what this machine is; see `hello`
    {"frame": "file", "name": NAME, "size": N}   a file of "back" that the runner wrote
    {"frame": "end", "status": N or null, "timeout": BOOL, "printed": TEXT, "error": {...} or null}

Without files ("files": null) it says hello, and that is all. "end" is sent when nothing of the job
is left. The input stays open for as long as the other side wants the job: its end, SIGHUP, SIGTERM
and the time limit end whatever runs and remove the folder. SIGKILL cannot be caught: then the
runner dies with its parent, and the next carrier removes the folder, which no one holds a lock on.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import glob
import importlib.metadata
import importlib.util
import json
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any, BinaryIO

START = b"exporter:"
FOLDERS = "exporter.job."
CHUNK = 1 << 20
KEPT_BYTES = 16 << 10  # of what the runner printed
ENDING_S = 5  # from closing its output to its exit status
MARGIN_S = 5  # beyond the time limit, for sending a result back
SPARE_BYTES = 64 << 10  # that must be free beyond the files
# The runner without its own folder in sys.path, as `python -P` does from 3.11 on.
RUN = (
    "import runpy, sys; sys.path = [path for path in sys.path if path]; "
    "sys.argv = ['runner.py', 'spec.json', 'result.json']; "
    "runpy.run_path('runner.py', run_name='__main__')"
)


def send(frame: dict[str, Any]) -> None:
    """Write one frame."""
    sys.stdout.buffer.write(START + json.dumps(frame).encode() + b"\n")
    sys.stdout.buffer.flush()


def hello() -> dict[str, Any]:
    """This machine, as far as it tells: an absent value is None or empty."""
    told: dict[str, list[str]] = {}
    for line in _text("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        told.setdefault(key.strip(), []).append(value.strip())
    flags = told.get("flags") or told.get("Features") or [""]
    memory = _text("/proc/meminfo").partition("MemTotal:")[2].split()
    names = [_text("/proc/device-tree/model").strip("\0 \n"), *told.get("model name", [])]
    return {
        "machine": platform.machine(),
        "flags": flags[0].split(),
        "cpu": next((name for name in names if name), ""),
        "cores": os.cpu_count(),
        "memory_mib": int(memory[0]) // 1024 if memory else None,
        "os": f"{platform.system()} {platform.release()}",
        "android": hasattr(sys, "getandroidapilevel"),
        "python": platform.python_version(),
        "onnxruntime": _version("onnxruntime"),
        "numpy": _version("numpy"),
    }


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _version(package: str) -> str | None:
    # onnxruntime has builds of other names (-gpu, -qnn) that are imported alike
    if importlib.util.find_spec(package) is None:
        return None
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def sweep(parent: str) -> None:
    """Remove the folders of carriers that were killed."""
    for folder in glob.glob(os.path.join(glob.escape(parent), FOLDERS + "*")):
        with contextlib.suppress(OSError), _locked(folder):
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: str) -> Any:
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(held)


@contextlib.contextmanager
def own_folder(parent: str) -> Any:
    """A new folder in `parent`, locked while it lives, and removed."""
    folder = tempfile.mkdtemp(prefix=FOLDERS, dir=parent)
    try:
        with _locked(folder):
            yield folder
    finally:
        _on_ending(signal.SIG_IGN)  # a second signal must not cut the removal
        shutil.rmtree(folder, ignore_errors=True)
        _on_ending(signal.SIG_DFL)


def _on_ending(handler: Any) -> None:
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, handler)


def receive(stream: BinaryIO, folder: str, files: list[list[Any]]) -> None:
    """Write the files that arrive into `folder`.

    Raises:
        OSError: the disk is full, or cannot be written.
        EOFError: the stream ended before them.
    """
    needed, free = sum(size for _, size in files) + SPARE_BYTES, shutil.disk_usage(folder).free
    if needed > free:
        message = f"{needed >> 10} KiB are needed in {folder}, {free >> 10} KiB are free"
        raise OSError(errno.ENOSPC, message)
    for path, left in files:
        os.makedirs(os.path.dirname(os.path.join(folder, path)), exist_ok=True)
        with open(os.path.join(folder, path), "wb") as file:
            while left:
                chunk = stream.read(min(left, CHUNK))
                if not chunk:
                    raise EOFError
                file.write(chunk)
                left -= len(chunk)


def run(folder: str, deadline: float) -> dict[str, Any]:
    """Run the runner in `folder` until it ends, the time is over or the input ends.

    Raises:
        EOFError: the input ended.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # Linux and Android

    def die_with_parent() -> None:
        if prctl is not None:
            prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

    process = subprocess.Popen(
        [sys.executable, "-c", RUN],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "TMPDIR": folder},  # onnxruntime leaves a file in it
        start_new_session=True,
        preexec_fn=die_with_parent,
    )
    assert process.stdout is not None
    printed, pipe, ended = b"", process.stdout.fileno(), False
    try:
        while not ended and (left := deadline - time.monotonic()) > 0:
            ready = select.select([0, pipe], [], [], left)[0]
            if 0 in ready and not os.read(0, CHUNK):
                raise EOFError
            if pipe in ready:
                chunk = os.read(pipe, CHUNK)
                printed = (printed + chunk)[-KEPT_BYTES:]
                ended = not chunk
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(ENDING_S if ended else 0)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    text = printed.decode("utf-8", "replace")
    return {"status": process.returncode, "timeout": not ended, "printed": text}


def send_back(folder: str, names: list[str]) -> None:
    """Send what the runner wrote, one frame a file."""
    for name in names:
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            send({"frame": "file", "name": name, "size": os.path.getsize(path)})
            with open(path, "rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer, CHUNK)
            sys.stdout.buffer.flush()


def main() -> None:
    """Serve one job."""
    _on_ending(lambda number, frame: sys.exit(128 + number))
    job = json.loads(sys.stdin.buffer.readline())
    parent = job["tmp"] or tempfile.gettempdir()
    deadline = time.monotonic() + job["timeout_s"]
    # Whatever hangs, be it the stream from a machine that vanished, ends then.
    signal.setitimer(signal.ITIMER_REAL, job["timeout_s"])
    sweep(parent)
    send({"frame": "hello", **hello()})
    if job["files"] is None:
        return
    end: dict[str, Any] = {"frame": "end", "status": None, "timeout": False, "printed": ""}
    try:
        with own_folder(parent) as folder:
            receive(sys.stdin.buffer, folder, job["files"])
            signal.setitimer(signal.ITIMER_REAL, deadline - time.monotonic() + MARGIN_S)
            end.update(run(folder, deadline))
            send_back(folder, job["back"])
    except (EOFError, BrokenPipeError):
        sys.exit(1)  # no one is there to be told
    except OSError as error:
        reason = "disk" if error.errno == errno.ENOSPC else "failed"
        end["error"] = {"reason": reason, "message": str(error)}
    send(end)


if __name__ == "__main__":
    main()
