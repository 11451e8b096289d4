"""Scenes that were accepted: where they stand, what was found, what failed."""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse

from fusar_edge.errors import InputError
from fusar_edge.runtime.geojson import collection_bytes
from fusar_edge.service.http.auth import needs
from fusar_edge.service.http.documented import problems
from fusar_edge.service.http.events import LARGEST
from fusar_edge.service.http.problems import without_paths
from fusar_edge.service.http.views import Scene, Scenes, Tiles, scene_view, tile_view
from fusar_edge.service.journal import SceneRow, Status
from fusar_edge.service.parts import ServiceParts
from fusar_edge.service.results import collection_from_journal
from fusar_edge.service.stac import item_from_collection

GEOJSON = "application/geo+json"
RESULT, ITEM = "result.geojson", "item.json"
LATEST = 4e9
"""Unix seconds; the year 2096."""

Limit = Annotated[int, Query(ge=1, le=500, description="So many at most")]
Before = Annotated[
    float | None,
    Query(ge=0, le=LATEST, description="Accepted before it: `next` of the page before"),
]


class DeadMessage(BaseModel):
    """What a sink has refused for good."""

    sink: str
    key: str
    attempts: int
    reason: str


class Revived(BaseModel):
    """Messages that are sent again."""

    sink: str
    messages: int


class DeadLetters(BaseModel):
    """What will not be tried again unless somebody asks."""

    scenes: list[Scene]
    """Failed; POST /v1/scenes/{id}/retry tries one again."""
    messages: list[DeadMessage]


def router(parts: ServiceParts) -> APIRouter:
    """All below /v1/scenes but submitting, /v1/dead-letters, and /v1/sinks."""
    routes = APIRouter(tags=["scenes"], responses=problems(429, 503))
    journal = parts.journal

    def found(scene_id: str) -> SceneRow:
        row = journal.scene(scene_id) if re.fullmatch("[0-9a-f]{16}", scene_id) else None
        if row is None:
            raise HTTPException(404, f"no scene has the id {scene_id[:40]!r}; GET /v1/scenes lists them")
        return row

    def collection(row: SceneRow) -> dict[str, Any]:
        return collection_from_journal(journal, row, parts.bundle)

    @routes.get("/v1/scenes")
    def scenes(status: Status | None = None, limit: Limit = 100, before: Before = None) -> Scenes:
        """Scenes, the newest first."""
        rows = journal.scenes(status, limit, before)
        return Scenes(scenes=list(map(scene_view, rows)), next=rows[-1].accepted_at if len(rows) == limit else None)

    @routes.get("/v1/scenes/{scene_id}", responses=problems(404))
    def scene(scene_id: str) -> Scene:
        """Where one scene stands."""
        return scene_view(found(scene_id))

    @routes.get(
        "/v1/scenes/{scene_id}/result.geojson",
        response_class=Response,
        responses={200: _json(GEOJSON, "What is known so far"), **problems(404)},
    )
    def result(scene_id: str) -> Response:
        """Answers and detections as GeoJSON; of an unfinished scene what is known so far."""
        row = found(scene_id)
        stored = parts.results(scene_id) / RESULT
        if row.status == "done" and stored.is_file():
            return FileResponse(stored, media_type=GEOJSON)
        return Response(collection_bytes(collection(row)), media_type=GEOJSON)

    @routes.get(
        "/v1/scenes/{scene_id}/item.json",
        response_class=Response,
        responses={200: _json(GEOJSON, "STAC 1.1 item"), **problems(404, 409)},
    )
    def item(scene_id: str) -> Response:
        """STAC item of a finished scene."""
        row = found(scene_id)
        if row.status != "done":
            raise HTTPException(409, f"scene {scene_id} is {row.status}: it has an item once it is done")
        stored = parts.results(scene_id) / ITEM
        if stored.is_file():
            return FileResponse(stored, media_type=GEOJSON)
        return Response(msgspec.json.encode(item_from_collection(collection(row), row)), media_type=GEOJSON)

    @routes.get("/v1/scenes/{scene_id}/tiles", responses=problems(404))
    def tiles(scene_id: str, after: Annotated[int, Query(ge=-1, le=LARGEST)] = -1, limit: Limit = 100) -> Tiles:
        """Finished tiles by index."""
        found(scene_id)
        page = [tile_view(outcome) for outcome in journal.tiles(scene_id, after, limit)]
        return Tiles(tiles=page, next=page[-1].index if len(page) == limit else None)

    @routes.post(
        "/v1/scenes/{scene_id}/retry",
        status_code=202,
        responses=problems(403, 404, 409),
        dependencies=[Depends(needs("admin"))],
    )
    def retry(scene_id: str) -> Scene:
        """Try a failed scene again; its finished tiles are kept."""
        found(scene_id)
        try:
            row = journal.retry(scene_id)
        except InputError as error:
            raise HTTPException(409, without_paths(str(error))) from None
        parts.pipeline.wake()
        return scene_view(row)

    @routes.get("/v1/dead-letters")
    def dead_letters(limit: Limit = 100, before: Before = None) -> DeadLetters:
        """Failed scenes, the newest first, and messages that a sink has refused."""
        rows = journal.scenes("failed", limit, before)
        dead = [
            DeadMessage(sink=m.sink, key=m.key, attempts=m.attempts, reason=without_paths(m.reason))
            for m in journal.dead_messages(limit)
        ]
        return DeadLetters(scenes=list(map(scene_view, rows)), messages=dead)

    @routes.post(
        "/v1/sinks/{sink}/retry",
        status_code=202,
        responses=problems(403, 404),
        dependencies=[Depends(needs("admin"))],
    )
    def revive(sink: str) -> Revived:
        """Send again what a sink has refused for good."""
        if sink not in journal.sinks:
            raise HTTPException(404, f"no sink is named {sink[:40]!r}; there are: {', '.join(journal.sinks)}")
        count = journal.revive(sink)
        for courier in parts.couriers:
            courier.wake()
        return Revived(sink=sink, messages=count)

    return routes


def _json(media_type: str, description: str) -> dict[str, Any]:
    return {"description": description, "content": {media_type: {"schema": {"type": "object"}}}}
