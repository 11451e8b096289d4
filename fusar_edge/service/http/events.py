"""Server-Sent Events: what the journal notes, as it notes it (HTML standard, section 9.2)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Header, Query
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from fusar_edge.errors import EdgeError
from fusar_edge.service.http.documented import problems
from fusar_edge.service.http.problems import without_paths

if TYPE_CHECKING:
    from fusar_edge.service.journal import Event, Journal
    from fusar_edge.service.parts import ServiceParts

HEARTBEAT_S = 15.0
"""A comment after so much silence: proxies cut what is quiet for longer."""
RECONNECT_MS = 2000
BATCH = 500
LARGEST = 2**63 - 1
"""Of SQLite's integers."""
RETRY_S = "10"


class Streams:
    """Streams that are open: so many at most, and all ended when the server stops."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._open: set[Listener] = set()
        self.closed = False

    def __len__(self) -> int:
        return len(self._open)

    def add(self, listener: Listener) -> None:
        """429 where there are too many, 503 where the server stops."""
        with self._lock:
            if self.closed:
                raise HTTPException(503, "the service stops", {"Retry-After": RETRY_S})
            if len(self._open) >= self._most:
                detail = f"{self._most} event streams are open, which is limits.event_streams: close one, or ask later"
                raise HTTPException(429, detail, {"Retry-After": RETRY_S})
            self._open.add(listener)

    def discard(self, listener: Listener) -> None:
        with self._lock:
            self._open.discard(listener)

    def close(self) -> None:
        """End all of them; clients connect again, with the id of the last event they saw."""
        with self._lock:
            self.closed = True
            listeners = list(self._open)
        for listener in listeners:
            listener.ring()


class Listener:
    """One client: woken by the journal from any thread, heard in the event loop that made it."""

    def __init__(self, streams: Streams, journal: Journal) -> None:
        self._loop = asyncio.get_running_loop()
        self._bell = asyncio.Event()
        self._streams = streams
        streams.add(self)
        self._unsubscribe = journal.on_event(self.ring)

    def ring(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._bell.set)

    async def rung(self, timeout_s: float) -> bool:
        """Whether something was noted since the last call, waiting for it so long."""
        try:
            await asyncio.wait_for(self._bell.wait(), timeout_s)
        except TimeoutError:
            return False
        self._bell.clear()
        return True

    def close(self) -> None:
        self._unsubscribe()
        self._streams.discard(self)


class EventResponse(StreamingResponse):
    """Gives its place back however it ends: also where the client left before the first byte."""

    def __init__(self, content: AsyncIterator[str], listener: Listener) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(content, headers=headers, media_type="text/event-stream")
        self._listener = listener

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._listener.close()


def router(parts: ServiceParts) -> APIRouter:
    """GET /v1/events."""
    routes = APIRouter(tags=["events"])

    @routes.get(
        "/v1/events",
        response_class=StreamingResponse,
        responses={
            200: {"description": "The stream", "content": {"text/event-stream": {"schema": {"type": "string"}}}},
            **problems(400, 429, 503),
        },
    )
    async def events(
        request: Request,
        after: Annotated[int | None, Query(ge=0, le=LARGEST, description="Id of the last event seen; 0: all")] = None,
        scene: Annotated[str | None, Query(max_length=64, description="Id of the one scene of interest")] = None,
        last_event_id: Annotated[str | None, Header(description="What EventSource sends; wins over `after`")] = None,
    ) -> StreamingResponse:
        """Every event from now on, or after the given one. A comment every 15 s keeps the line open.

        `id` is the event's, `event` its kind (scene.accepted, tile.done, ...), `data` one JSON object with id, at (Unix
        seconds), scene, kind and data. Event `gap`: some in between are not kept any more, so read the scenes again.
        """
        start = parsed_id(last_event_id) if last_event_id else after
        journal, streams, door = parts.journal, request.app.state.streams, request.app.state.door
        listener = Listener(streams, journal)
        try:
            if start is None:
                start = await run_in_threadpool(journal.last_event)
        except BaseException:
            listener.close()
            raise
        access = request.state.access
        stream = told(journal, streams, listener, start, scene, lambda: door.holds(access))
        return EventResponse(stream, listener)

    return routes


async def told(
    journal: Journal,
    streams: Streams,
    listener: Listener,
    after: int,
    scene: str | None,
    allowed: Callable[[], bool],
) -> AsyncIterator[str]:
    """Text of the stream, from the event after `after` until the server stops or the token is revoked."""
    clock = asyncio.get_running_loop().time
    yield f"retry: {RECONNECT_MS}\n\n"
    following = await run_in_threadpool(_gap, journal, after)
    if following is not None:
        yield f"event: gap\ndata: {json.dumps({'after': after, 'next': following})}\n\n"
        after = following - 1
    said = asked = clock()
    while not streams.closed:
        if clock() - asked >= HEARTBEAT_S:
            asked = clock()
            if not await run_in_threadpool(_still, allowed):
                return
        try:
            events = await run_in_threadpool(journal.events, after, scene, BATCH)
        except EdgeError:
            return  # the client connects again and is told from where it was
        if events:
            yield "".join(map(event_text, events))
            said, after = clock(), events[-1].id
        elif clock() - said >= HEARTBEAT_S:
            yield ": alive\n\n"
            said = clock()
        else:
            await listener.rung(HEARTBEAT_S - (clock() - said))


def event_text(event: Event) -> str:
    """One event. JSON without line ends, so that one `data:` line holds it; reasons without paths of this machine."""
    data = {name: without_paths(v) if isinstance(v, str) else v for name, v in event.data.items()}
    told_: dict[str, Any] = {"id": event.id, "at": event.at, "scene": event.scene_id, "kind": event.kind, "data": data}
    return f"id: {event.id}\nevent: {event.kind}\ndata: {json.dumps(told_)}\n\n"


def parsed_id(text: str) -> int:
    """A Last-Event-ID that this service gave."""
    if not re.fullmatch(r"[0-9]{1,19}", text, re.ASCII) or int(text) > LARGEST:
        raise HTTPException(400, f"Last-Event-ID {text[:40]!r} is not the id of an event: they are whole numbers")
    return int(text)


def _gap(journal: Journal, after: int) -> int | None:
    """Id of the first event that there is to tell, where those that follow `after` are not all there any more.

    Ids have no holes. One beyond the newest is of another journal, whose place this one took.
    """
    last = journal.last_event()  # before the events: one that is noted in between must not look like a hole
    first = journal.events(after, None, 1)
    following = first[0].id if first else last + 1
    return None if following == after + 1 or (after == 0 and first) else following


def _still(allowed: Callable[[], bool]) -> bool:
    try:
        return allowed()
    except EdgeError:
        return False
