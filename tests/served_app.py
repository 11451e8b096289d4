"""An application behind a real server."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from fastapi import FastAPI

from fusar_edge.service.http.server import Server
from fusar_edge.service.parts import ServiceParts


@contextlib.contextmanager
def served(app: FastAPI, parts: ServiceParts) -> Iterator[str]:
    """The application on a free port of loopback, by a real uvicorn; yields its address."""
    server = Server(app, parts.settings.http)
    ready = threading.Event()
    start: Callable[..., Any] = server.startup

    async def startup(sockets: Any = None) -> None:
        await start(sockets)
        ready.set()

    server.startup = startup  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert ready.wait(20)
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
