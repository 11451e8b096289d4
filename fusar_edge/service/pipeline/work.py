"""One open scene while the service works on it: its plan, what is left of it, its place on the ground."""

from __future__ import annotations

import threading
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fusar_edge.errors import SceneError
from fusar_edge.runtime.bundle import Bundle
from fusar_edge.runtime.detections import Located
from fusar_edge.runtime.geojson import common_properties
from fusar_edge.runtime.interpreter import ordered_tasks
from fusar_edge.runtime.rings import geometry_from_ring
from fusar_edge.runtime.tile import AnchorLookup
from fusar_edge.sar.scene import Scene
from fusar_edge.sar.tiles import TileWindow, plan_tiles
from fusar_edge.service.journal import SceneRow

Facts = dict[str, Any]
Rank = tuple[int, float, float, str]


class SceneWork:
    """A scene that was begun. Who reads owns `scene` and `todo`; `left` and `closed` belong to the ledger."""

    def __init__(self, row: SceneRow, facts: Facts, done: set[int], scene: Scene, look_up: AnchorLookup | None) -> None:
        assert scene.geolocation is not None, "open_scene refuses a scene without place"
        self.row, self.facts, self.look_up = row, facts, look_up
        self.scene: Scene | None = scene
        """None while the file is closed: only a few are open at once."""
        self.place = SharedPlace(scene.geolocation)
        self.windows = windows_from_facts(facts)
        self.tasks = ordered_tasks(row.tasks, None)
        self.todo = deque(index for index in range(len(self.windows)) if index not in done)
        self.left = len(self.todo)
        """Tiles without an outcome in the journal."""
        self.closed = False
        """Finished or failed: what still comes of its tiles is dropped."""
        self.columns = sum(window.row_off == self.windows[0].row_off for window in self.windows)

    @property
    def id(self) -> str:
        return self.row.id

    @property
    def rank(self) -> Rank:
        return rank_of(self.row)

    def is_before(self, row: SceneRow) -> bool:
        """Whether the scene was queued again since this work began."""
        return row.attempts > self.row.attempts

    def left_out_by(self, stride: int) -> bool:
        """Whether the next tile is not one in `stride`, as on a chessboard."""
        return sum(divmod(self.todo[0], self.columns)) % stride != 0

    def common(self, bundle_sha256: str, table_sha256: str | None) -> dict[str, Any]:
        """What all its features say."""
        return common_properties(
            self.row.name,
            self.facts["acquired"],
            self.facts["simulated"],
            bundle_sha256=bundle_sha256,
            table_sha256=table_sha256,
            scene_sha256=self.row.sha256,
        )

    def close_file(self) -> None:
        if self.scene is not None:
            self.scene.close()
            self.scene = None


class SharedPlace:
    """A geolocation that several threads ask: one after the other."""

    def __init__(self, located: Located) -> None:
        self._located, self.lock = located, threading.Lock()
        """The lock is held too by who asks the geolocation itself."""

    def lonlat(self, x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        with self.lock:
            return self._located.lonlat(x, y)

    def footprint(self, window: TileWindow) -> list[list[float]]:
        with self.lock:
            return self._located.footprint(window)


def rank_of(row: SceneRow) -> Rank:
    """Least is most urgent: priority, then deadline, then who came first; as the journal's open_scenes."""
    deadline = float("inf") if row.deadline is None else row.deadline
    return -row.priority, deadline, row.accepted_at, row.id


def facts_from_scene(scene: Scene, bundle: Bundle, anchor_year: int | None, table_sha256: str | None) -> Facts:
    """What the journal keeps of a scene that is begun, JSON ready; with it a restart plans the same tiles."""
    settings = bundle.settings
    footprint = scene.footprint(TileWindow(0, 0, scene.height, scene.width))
    facts: Facts = {
        "width": scene.width,
        "height": scene.height,
        "kind": str(scene.kind),
        "band": scene.band,
        "band_name": scene.band_name,
        "db_white": scene.radiometry.db_white,
        "acquired": scene.acquired,
        "simulated": scene.simulated,
        "crs": scene.crs_name,
        "tile_px": settings.tile_px,
        "overlap_px": settings.overlap_px,
        "anchor_year": anchor_year,
        "table_sha256": table_sha256,
        "footprint": footprint,
        "geometry": geometry_from_ring(footprint),
        "bbox": bbox_from_ring(footprint),
    }
    return {**facts, "tiles": len(windows_from_facts(facts))}


def windows_from_facts(facts: Facts) -> list[TileWindow]:
    """The scene's plan of tiles; a tile's index is its place in it."""
    return plan_tiles(facts["width"], facts["height"], facts["tile_px"], facts["overlap_px"])


def bbox_from_ring(ring: list[list[float]]) -> list[float]:
    """West, south, east, north of a ring without jumps; west > east where it crosses 180 degrees (RFC 7946, 5.2)."""
    lon, lat = np.asarray(ring, np.float64).T
    if np.ptp(lon) >= 360.0:
        return [-180.0, float(lat.min()), 180.0, float(lat.max())]
    west, east = (float(v) for v in (lon.min(), lon.max()))
    if west < -180.0 or east > 180.0:
        west, east = ((v + 180.0) % 360.0 - 180.0 for v in (west, east))
    return [west, float(lat.min()), east, float(lat.max())]


def check_unchanged(row: SceneRow) -> None:
    """SceneError where the file is not the one that was accepted."""
    try:
        now = Path(row.path).stat()
    except OSError as problem:
        raise SceneError(f"{row.name}: its file has gone ({problem.strerror}); submit it again") from None
    if (now.st_size, now.st_mtime_ns) != (row.size_bytes, row.mtime_ns):
        raise SceneError(f"{row.name}: its file was changed after it was accepted; submit it again")
