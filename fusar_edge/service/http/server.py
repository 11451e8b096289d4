"""uvicorn for the application, with what it must not do left out."""

from __future__ import annotations

import socket

import uvicorn
from fastapi import FastAPI

from fusar_edge.service.settings import HttpSettings

GRACE_S = 10
"""Answers on their way have so long when the service stops."""


class Server(uvicorn.Server):
    """Ends event streams when it stops; they would hold it up for ever."""

    def __init__(self, app: FastAPI, settings: HttpSettings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                server_header=False,
                access_log=False,
                log_config=None,
                ws="none",
                lifespan="on",
                timeout_graceful_shutdown=GRACE_S,
            )
        )
        self._streams = app.state.streams

    @property
    def port(self) -> int:
        """The one it listens to; chosen by the system where the settings say 0. Once `started`."""
        return int(self.servers[0].sockets[0].getsockname()[1])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._streams.close()
        await super().shutdown(sockets)
