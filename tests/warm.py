"""The `exporter` command without its start-up: each call forks a process that has imported it.

A pipeline calls the command a dozen times, and importing torch takes longer than the work on a
small model. The call is a real one: own process, arguments, directory, environment, output, code.
"""

from __future__ import annotations

import array
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLIENT = """#!{python} -SE
import array, json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
call = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
ends = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
server.sendmsg([len(call).to_bytes(4, "big")], ends)
server.sendall(call)
sys.exit(server.recv(1)[0])
"""


@contextmanager
def serving(program: Path) -> Iterator[None]:
    """Make `program` the command for as long as the context lasts."""
    address = program.with_suffix(".socket")
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.warm", address],
        cwd=Path(__file__).resolve().parents[1],
        env={**os.environ, **quiet},
    )
    try:
        while not address.exists():
            assert process.poll() is None, "the warm process ended"
            time.sleep(0.05)
        program.write_text(CLIENT.format(python=sys.executable, address=str(address)))
        program.chmod(0o755)
        yield
    finally:
        process.kill()
        process.wait()


def serve(address: str) -> None:
    """Answer one call after the other."""
    import datasets  # noqa: F401
    import torch  # noqa: F401
    import transformers.activations
    import transformers.modeling_rope_utils  # noqa: F401

    import exporter.planning
    import exporter.recheck  # noqa: F401

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    while True:
        client, _ = listener.accept()
        head, control, _, _ = client.recvmsg(4, socket.CMSG_SPACE(12))
        ends = array.array("i", control[0][2])
        call = b""
        while len(call) < int.from_bytes(head, "big"):
            call += client.recv(1 << 16)
        child = os.fork()
        if not child:
            _answer(*json.loads(call), ends)
        _, status = os.waitpid(child, 0)
        for end in ends:
            os.close(end)
        client.sendall(bytes([os.waitstatus_to_exitcode(status) & 0xFF]))
        client.close()


def _answer(
    arguments: list[str], directory: str, environment: dict[str, str], ends: array.array[int]
) -> None:
    code = 70
    try:
        for number, end in enumerate(ends):
            os.dup2(end, number)
        os.chdir(directory)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = ["exporter", *arguments]
        from exporter.cli import main

        main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
