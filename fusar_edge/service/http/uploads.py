"""Scenes that somebody gives: a file that streams to disk, or a STAC item that says where the file is."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from fusar_edge.runtime.bundle import Bundle
from fusar_edge.service.http.documented import problems
from fusar_edge.service.http.multipart import FIELD, FilePart
from fusar_edge.service.http.views import Scene, scene_view
from fusar_edge.service.journal import SceneRow
from fusar_edge.service.parts import ServiceParts

RAW = ("image/tiff", "application/octet-stream")
FORM = "multipart/form-data"
ROOM_BYTES = 16 << 20
"""After so many bytes that nobody declared the disk is looked at again."""
PIECE_BYTES = 1 << 20
"""Written at once; a thread for every packet costs more than the packet."""
SILENCE_S = 60.0
"""An upload that sends nothing for so long is given up."""
AT_ONCE = 16
"""Uploads on their way. Each may take its whole limit of disk."""
FORM_EXTRA_BYTES = 64 << 10
"""Boundaries and headers around the file."""
UNNAMED = "upload.tif"

SCENE = {"schema": {"type": "string", "format": "binary"}}
BODY = {
    "requestBody": {
        "required": True,
        "description": "The GeoTIFF itself, or a form with it as its one part.",
        "content": {
            **dict.fromkeys(RAW, SCENE),
            FORM: {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "properties": {FIELD: SCENE["schema"]},
                    "additionalProperties": False,
                }
            },
        },
    }
}
Task = Literal["caption", "count", "grid", "classify", "detect"]
Tasks = Annotated[list[Task] | None, Query(max_length=16, description="What is asked of every tile")]
Label = Annotated[str | None, Query(min_length=1, max_length=64, description="What count, grid and detect look for")]
Priority = Annotated[int, Query(ge=-100, le=100, description="Higher goes first")]
Name = Annotated[str | None, Query(max_length=255, description="File name, where the body does not say it")]
Deadline = Annotated[
    float | None,
    Query(gt=0, le=1e8, description="Wanted within so many seconds: sooner goes first"),
]


@dataclass(frozen=True)
class Question:
    """What is asked about a scene, and how urgently; a dependency, so that all ways in take the same query."""

    tasks: Tasks = None
    label: Label = None
    priority: Priority = 0
    deadline_s: Deadline = None

    def check(self, bundle: Bundle) -> None:
        """422 for a task that the bundle has not: said before gigabytes are sent, not after."""
        if unknown := sorted(set(self.tasks or ()) - set(bundle.prompts.tasks)):
            has = ", ".join(sorted(bundle.prompts.tasks))
            raise HTTPException(422, f"task {unknown[0][:40]!r} is unknown; this service has: {has}")

    def options(self) -> dict[str, Any]:
        """Keyword arguments of `Intake.offer`."""
        deadline = None if self.deadline_s is None else time.time() + self.deadline_s
        return {"tasks": self.tasks, "label": self.label, "priority": self.priority, "deadline": deadline}


class Uploads:
    """Those on their way: how many, and how much of the disk they have asked for."""

    def __init__(self, parts: ServiceParts) -> None:
        self._parts = parts
        self._limit = parts.settings.limits.upload_mib << 20
        self._left: dict[Path, int] = {}
        """File -> bytes that were declared and have not come yet."""

    async def receive(self, request: Request, name: str | None) -> tuple[Path, str]:
        """The body of a request as a file in `incoming`, and its name. Whatever goes wrong, the file is gone."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in (*RAW, FORM):
            raise HTTPException(415, f"Content-Type {kind[:80]!r} is no scene: send {', '.join(RAW)} or {FORM}")
        form = FilePart(request.headers["content-type"]) if kind == FORM else None
        declared = self._declared(request, FORM_EXTRA_BYTES if form else 0)
        if len(self._left) >= AT_ONCE:
            raise HTTPException(429, f"{AT_ONCE} uploads are on their way, the most at once", {"Retry-After": "10"})
        path = self._parts.incoming / f"{secrets.token_hex(8)}.part"
        self._left[path] = declared
        try:
            # Disk that uploads were promised and have not filled yet counts as used.
            await run_in_threadpool(self._parts.intake.admit, self._promised())
            await self._store(request, form, path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        finally:
            del self._left[path]
        return path, (form.name if form else "") or name or UNNAMED

    def _promised(self) -> int:
        """Bytes that uploads on their way were promised and have not sent."""
        return sum(max(left, 0) for left in self._left.values())

    async def _store(self, request: Request, form: FilePart | None, path: Path) -> None:
        taken = asked = 0
        file = await run_in_threadpool(open, path, "xb")
        try:
            async for body in _pieces(request):
                data = form.feed(body) if form else body
                taken += len(data)
                if taken > self._limit:
                    raise self._too_long()
                self._left[path] -= len(data)
                if self._left[path] < 0 and taken - asked >= ROOM_BYTES:
                    asked = taken
                    await run_in_threadpool(self._parts.intake.admit_bytes, self._promised() + ROOM_BYTES)
                await run_in_threadpool(file.write, data)
        finally:
            file.close()
        if form:
            form.close()

    def _declared(self, request: Request, extra: int) -> int:
        """Content-Length; 0 where the body comes in chunks."""
        text = request.headers.get("content-length", "")
        declared = int(text[:20]) if text.isdecimal() else 0
        if declared > self._limit + extra:
            raise self._too_long()
        return declared

    def _too_long(self) -> HTTPException:
        mib = self._parts.settings.limits.upload_mib
        return HTTPException(413, f"the file has more than {mib} MiB, which is limits.upload_mib of the service")


def router(parts: ServiceParts) -> APIRouter:
    """POST /v1/scenes and POST /v1/scenes/stac."""
    routes = APIRouter(tags=["scenes"], responses={**problems(408, 415, 422, 429, 503, 507), **known()})
    uploads = Uploads(parts)

    @routes.post("/v1/scenes", status_code=202, openapi_extra=BODY)
    async def upload(
        request: Request,
        response: Response,
        question: Annotated[Question, Depends()],
        name: Name = None,
    ) -> Scene:
        """Give a scene: a GeoTIFF with its place in it.

        202: accepted, and safe on disk: it will be worked on even if the power fails now. 200: this file was given
        before with the same question. 429: the queue or the disk is full, ask again after Retry-After.
        """
        question.check(parts.bundle)
        path, stated = await uploads.receive(request, name)
        try:
            offer = partial(parts.intake.offer, path, name=stated, source="upload", owned=True, **question.options())
            row, new = await run_in_threadpool(offer)
        finally:
            path.unlink(missing_ok=True)
        return answer(response, row, new)

    return routes


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    """The body in pieces of about a MiB. 400 where the client leaves, 408 where it falls silent."""
    stream = request.stream().__aiter__()
    kept: list[bytes] = []
    size = 0
    while True:
        try:
            async with asyncio.timeout(SILENCE_S):
                body = await anext(stream, None)
        except TimeoutError:
            raise HTTPException(408, f"nothing arrived for {SILENCE_S:g} s: the upload was given up") from None
        except ClientDisconnect:
            raise HTTPException(400, "the client left in the middle of the upload") from None
        if body is None:
            break
        kept.append(body)
        size += len(body)
        if size >= PIECE_BYTES:
            yield b"".join(kept)
            kept, size = [], 0
    if kept:
        yield b"".join(kept)


def answer(response: Response, row: SceneRow, new: bool) -> Scene:
    """What every way in says about an accepted scene."""
    response.status_code = 202 if new else 200
    response.headers["Location"] = f"/v1/scenes/{row.id}"
    return scene_view(row)


def known() -> dict[int | str, dict[str, Any]]:
    """`responses` of a file and question that were given before."""
    return {200: {"model": Scene, "description": "Known already"}}
