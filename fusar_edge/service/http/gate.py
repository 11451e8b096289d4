"""What every request passes through: door, limit of the body, headers of safety, count, last resort."""

from __future__ import annotations

import logging
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fusar_edge.errors import InputError
from fusar_edge.service.http.auth import COOKIE, Access, Door, scope_needed
from fusar_edge.service.http.metrics import Metrics
from fusar_edge.service.http.problems import problem, problem_from_error

BODY_BYTES = 4 << 20
"""A STAC item is some hundred kB; more is no question to this service."""
UNBOUNDED = frozenset({"/v1/scenes", "/v1/chat/completions"})
"""Count for themselves: scenes stream to disk, and a question has its picture in it."""
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; worker-src 'self' blob:; "
        "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""MapLibre makes its worker of a blob and sets styles of its elements."""
log = logging.getLogger(__name__)


class Gate:
    """Plain ASGI: streams pass through it piece by piece."""

    def __init__(self, app: ASGIApp, door: Door, metrics: Metrics) -> None:
        self._app = app
        self._door = door
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(scope, send, self._metrics)
        try:
            scope.setdefault("state", {})["access"] = self._access(scope)
            await self._app(scope, _bounded(scope, receive), answer.send)
        except HTTPException as refused:
            await problem_from_error(refused)(scope, receive, answer.send)
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            if answer.started:
                raise  # the connection is cut: half an answer must not look like a whole one
            failure = problem(500, "the service failed on this request; its log says why")
            await failure(scope, receive, answer.send)

    def _access(self, scope: Scope) -> Access:
        headers, method, path = Headers(scope=scope), scope["method"], scope["path"]
        if refused := self._door.refusal(method, path, headers):
            raise refused
        try:
            access = self._door.access(headers, Request(scope).cookies.get(COOKIE))
        except InputError:
            log.exception("tokens")
            raise HTTPException(503, "the tokens of the service cannot be read; its log says why") from None
        needed = scope_needed(method, path)
        if needed:
            self._door.check(access, needed)
        return access


def _bounded(scope: Scope, receive: Receive) -> Receive:
    """413 for a body that says it is too long, or turns out to be."""
    path = scope["path"]
    if path in UNBOUNDED:
        return receive
    too_long = HTTPException(413, f"the body has more than {BODY_BYTES} bytes, the most that is taken here")
    declared = Headers(scope=scope).get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > BODY_BYTES:
        raise too_long
    taken = 0

    async def counted() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > BODY_BYTES:
            raise too_long
        return message

    return counted


class _Answer:
    """Adds headers to an answer and counts it when it starts."""

    def __init__(self, scope: Scope, send: Send, metrics: Metrics) -> None:
        self.started = False
        self._scope = scope
        self._send = send
        self._metrics = metrics
        self._since = time.monotonic()

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            if self._scope["path"].startswith("/v1/"):
                headers.setdefault("Cache-Control", "no-store")
            route = getattr(self._scope.get("route"), "path", "none")
            seconds = time.monotonic() - self._since
            self._metrics.count_request(self._scope["method"], route, message["status"], seconds)
        await self._send(message)
