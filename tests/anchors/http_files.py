"""A local HTTP server of files with byte ranges, that logs requests and refuses what real hosts refuse."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple


class Request(NamedTuple):
    method: str
    path: str
    """With the query string."""
    user_agent: str | None
    range: str | None


class FileServer(ThreadingHTTPServer):
    """Serves `folder`. As data.source.coop does, it answers 403 to urllib's own User-Agent; also to none."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.host = f"127.0.0.1:{self.server_port}"
        self.url = f"http://{self.host}"
        self.requests: list[Request] = []
        self.answers: dict[str, list[int]] = {}
        """Path -> statuses to answer first, before the file is served."""
        self.cut: set[str] = set()
        """Paths of which half of the promised bytes come."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes: 40 ms a request otherwise
    server: FileServer

    def do_GET(self) -> None:
        agent, span = self.headers.get("User-Agent"), self.headers.get("Range")
        self.server.requests.append(Request(self.command, self.path, agent, span))
        path = self.path.partition("?")[0]
        file = self.server.folder / path.lstrip("/")
        if self.server.answers.get(path):
            return self._answer(self.server.answers[path].pop(0))
        if not agent or agent.startswith("Python-urllib"):
            return self._answer(403)
        if not file.is_file():
            return self._answer(404)
        return self._send(file.read_bytes(), span, path in self.server.cut)

    do_HEAD = do_GET

    def _send(self, content: bytes, span: str | None, cut: bool) -> None:
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", span or "")
        if not found:
            return self._answer(200, content, cut=cut)
        start, stop = int(found[1]), min(len(content), int(found[2] or len(content)) + 1)
        if start >= len(content):
            return self._answer(416)
        return self._answer(206, content[start:stop], f"bytes {start}-{stop - 1}/{len(content)}", cut)

    def _answer(self, status: int, content: bytes = b"", span: str | None = None, cut: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        if span:
            self.send_header("Content-Range", span)
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
            self.close_connection = self.close_connection or cut

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def file_server(folder: Path) -> Iterator[FileServer]:
    server = FileServer(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
