"""Pictures of scenes: map tiles, crops, and where both lie."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any

import anyio
from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request, Response
from fastapi import Path as InPath
from starlette.exceptions import HTTPException

from fusar_edge.errors import SceneError
from fusar_edge.sar.scene import Scene
from fusar_edge.sar.tiles import TileWindow, plan_tiles
from fusar_edge.service.http.documented import problems
from fusar_edge.service.http.problems import without_paths
from fusar_edge.service.journal import SceneRow
from fusar_edge.service.map.crop import crop_png
from fusar_edge.service.map.ground import bounds_deg, tile_plan
from fusar_edge.service.map.opened import OpenScenes
from fusar_edge.service.map.preview import Previews, preview_factor
from fusar_edge.service.map.xyz import HIGHEST_ZOOM, Tone, native_zoom, paint_tile
from fusar_edge.service.parts import ServiceParts

AT_ONCE = 2
"""Pictures painted side by side: captions come first, and a map asks for dozens."""
FOREVER = {"Cache-Control": "private, max-age=604800, immutable"}
"""A scene's id is the hash of its pixels and of the bundle with its radiometry: its pictures never change."""
Zoom = Annotated[int, InPath(ge=0, le=HIGHEST_ZOOM)]
Place = Annotated[int, InPath(ge=0, lt=2**HIGHEST_ZOOM)]
TileIndex = Annotated[int, InPath(ge=0, lt=2**31)]
InTone = Annotated[Tone, Query(description="model: the grey that the model sees; lifted: its square root")]
PNG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}, "description": "PNG"}
}


class Pictures:
    """What the routes share."""

    def __init__(self, parts: ServiceParts) -> None:
        self._parts = parts
        self._opened = OpenScenes(parts.bundle.radiometry)
        self._turn = anyio.CapacityLimiter(AT_ONCE)
        self.previews = Previews(parts.settings.data_dir / "previews")

    async def drawn(self, request: Request, draw: Callable[[], Response]) -> Response:
        """`draw()` in a thread, when it is its turn; not at all where the asker has gone meanwhile."""
        async with self._turn:
            if await request.is_disconnected():
                return Response(status_code=503)
            return await run_sync(draw)

    def xyz(self, scene_id: str, z: int, x: int, y: int, tone: Tone) -> Response:
        if max(x, y) >= 2**z:
            raise HTTPException(404, f"zoom {z} has {2**z} x {2**z} tiles; {x}, {y} is none of them")
        with self._scene(scene_id) as (row, scene):
            state, reason = self._preview(row, scene)
            preview = self.previews.path(row.id) if state == "ready" and preview_factor(*_size(scene)) else None
            png = paint_tile(scene, preview, z, x, y, tone)
        if png is not None:
            return Response(png, 200, FOREVER, "image/png")
        if state == "failed":
            raise HTTPException(409, f"there is no small copy of this scene for zoom {z}: {reason}")
        raise HTTPException(503, "the small copy of this scene is being made", {"Retry-After": "2"})

    def tilejson(self, scene_id: str) -> dict[str, Any]:
        with self._scene(scene_id) as (row, scene):
            state, reason = self._preview(row, scene)
            return {
                "tilejson": "3.0.0",
                "tiles": [f"/v1/scenes/{row.id}/xyz/{{z}}/{{x}}/{{y}}.png"],
                "minzoom": 0,
                "maxzoom": native_zoom(scene),
                "bounds": bounds_deg(scene),
                "preview": state,
                "reason": reason,
            }

    def plan(self, scene_id: str) -> dict[str, Any]:
        with self._scene(scene_id) as (row, scene):
            return tile_plan(scene, self._windows(row, scene))

    def crop(self, scene_id: str, index: int) -> Response:
        with self._scene(scene_id) as (row, scene):
            windows = self._windows(row, scene)
            if index >= len(windows):
                raise HTTPException(404, f"the scene has {len(windows)} tiles, 0 to {len(windows) - 1}")
            return Response(crop_png(scene, windows[index]), 200, FOREVER, "image/png")

    def _windows(self, row: SceneRow, scene: Scene) -> list[TileWindow]:
        """The scene's plan: the one in force, or the one that it will get."""
        settings = self._parts.bundle.settings
        tile_px = int(row.facts.get("tile_px", settings.tile_px))
        overlap_px = int(row.facts.get("overlap_px", settings.overlap_px))
        return plan_tiles(scene.width, scene.height, tile_px, overlap_px)

    def _preview(self, row: SceneRow, scene: Scene) -> tuple[str, str]:
        if not preview_factor(*_size(scene)):
            return "ready", ""
        return self.previews.state(row.id, lambda: self._opened.open(row.path, row.size_bytes, row.mtime_ns))

    @contextlib.contextmanager
    def _scene(self, scene_id: str) -> Iterator[tuple[SceneRow, Scene]]:
        row = self._parts.journal.scene(scene_id) if re.fullmatch("[0-9a-f]{16}", scene_id) else None
        if row is None:
            raise HTTPException(404, f"no scene has the id {scene_id[:40]!r}; GET /v1/scenes lists them")
        try:
            with self._opened.use(row.path, row.size_bytes, row.mtime_ns) as scene:
                yield row, scene
        except SceneError as problem:
            raise HTTPException(409, without_paths(str(problem))) from None

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Any) -> AsyncIterator[None]:
        journal = self._parts.journal
        await run_sync(lambda: self.previews.sweep(lambda scene_id: journal.scene(scene_id) is not None))
        yield
        await run_sync(self.previews.stop)
        self._opened.close()


def router(parts: ServiceParts) -> APIRouter:
    """Routes below /v1/scenes/ID that show pixels."""
    pictures = Pictures(parts)
    api = APIRouter(
        prefix="/v1/scenes/{scene_id}",
        tags=["pictures"],
        lifespan=pictures.lifespan,
        responses=problems(404, 409, 429, 503),
    )

    @api.get("/xyz.json")
    def xyz_json(scene_id: str) -> dict[str, Any]:
        """TileJSON 3.0 of the scene's picture. `preview`: whether low zooms are "ready", "making" or "failed"."""
        return pictures.tilejson(scene_id)

    @api.get("/xyz/{z}/{x}/{y}.png", response_class=Response, responses=PNG)
    async def xyz_png(request: Request, scene_id: str, z: Zoom, x: Place, y: Place, tone: InTone = "model") -> Response:
        """Web-Mercator tile, 256 px, transparent outside of the scene.

        503: the copy that low zooms are drawn from is being made. 409: the file is gone, changed or unreadable.
        """
        return await pictures.drawn(request, lambda: pictures.xyz(scene_id, z, x, y, tone))

    @api.get("/plan.geojson")
    def plan_geojson(scene_id: str) -> dict[str, Any]:
        """Outlines of the tiles, for drawing; a feature's `id` is the tile's index. Footprints are in the results."""
        return pictures.plan(scene_id)

    @api.get("/tiles/{index}/crop.png", response_class=Response, responses=PNG)
    async def crop_png_route(request: Request, scene_id: str, index: TileIndex) -> Response:
        """The pixels that the model was shown of one tile."""
        return await pictures.drawn(request, lambda: pictures.crop(scene_id, index))

    return api


def _size(scene: Scene) -> tuple[int, int]:
    return scene.width, scene.height
