"""Files for one page, on the loopback: named ones only, under an address nobody can guess."""

from __future__ import annotations

import secrets
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_CHUNK_BYTES = 1 << 20
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".mjs": "text/javascript",
    ".json": "application/json",
    ".wasm": "application/wasm",
}
# Without the first two a page gets no shared memory, and so no threads in WebAssembly.
_HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@contextmanager
def served(files: Mapping[str, Path], posted: Mapping[str, Path]) -> Iterator[str]:
    """Serve `files` on 127.0.0.1, at a free port, for as long as the context lasts.

    Nothing but these files is served, whatever path is asked for, and no other user of this
    machine knows the secret part of the address.

    Args:
        files: relative address -> file.
        posted: relative address -> file that a POST to it writes.

    Yields:
        The address that the relative ones are under, with a slash at its end.
    """
    start = f"/{secrets.token_urlsafe(16)}/"

    server = _Server(("127.0.0.1", 0), _Handler)
    server.files = {start + name: path for name, path in files.items()}
    server.posted = {start + name: path for name, path in posted.items()}
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}{start}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    files: Mapping[str, Path]
    posted: Mapping[str, Path]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a browser that was stopped cuts its connections."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        """Send a file."""
        path = self.server.files.get(self.path)
        if path is None:
            self._end(404)
            return
        with path.open("rb") as file:
            self.send_response(200)
            self.send_header("Content-Length", str(path.stat().st_size))
            self.send_header("Content-Type", _TYPES.get(path.suffix, "application/octet-stream"))
            self.end_headers()
            shutil.copyfileobj(file, self.wfile, _CHUNK_BYTES)

    def do_POST(self) -> None:
        """Take a file."""
        path = self.server.posted.get(self.path)
        length = self.headers.get("Content-Length", "")
        if path is None or not length.isdigit():
            self.close_connection = True  # its body was not read
            self._end(404)
            return
        left = int(length)
        with path.open("wb") as file:
            while left:
                part = self.rfile.read(min(left, _CHUNK_BYTES))
                if not part:
                    self._end(400)
                    return
                file.write(part)
                left -= len(part)
        self._end(204)

    def end_headers(self) -> None:
        """The headers of every answer."""
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: standard error is the user's."""

    def _end(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()
