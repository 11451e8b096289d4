"""What a benchmark does again and again: the tiles of a scene, and the questions about each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusar_edge.data.truth import Box
from fusar_edge.errors import InputError
from fusar_edge.manifest import sha256_file
from fusar_edge.runtime.bundle import Bundle
from fusar_edge.runtime.interpreter import anchor_year_of, ordered_tasks
from fusar_edge.runtime.session import Session, check_table
from fusar_edge.runtime.tile import AnchorLookup
from fusar_edge.sar.scene import Scene, open_scene
from fusar_edge.sar.tiles import TileWindow, plan_tiles

SEED, SPACING_M, SHIPS, KIND = 11, 3.0, 24, "coast"
SIZE, QUICK_SIZE = 1824, 944
"""Four by four tiles of 504 px that share 64 px; two by two: p90 then lies within one tile's times, not between two."""


@dataclass(frozen=True)
class Workload:
    """What is done again and again: the tiles of one open scene and the questions about each."""

    scene: Scene
    windows: Sequence[TileWindow]
    tasks: tuple[str, ...]
    label: str = "ship"
    boxes: Sequence[Box] | None = None
    """What `classify` asks about, pixels of the scene; None: what `detect` finds."""
    look_up: AnchorLookup | None = None
    out: Path = Path("tile.geojson")
    """Written again for every tile."""
    facts: dict[str, Any] = field(default_factory=dict)
    """For the report."""


def forget_raster() -> None:
    """Drop GDAL's decoded blocks, so that a tile is decoded as if the scene were read for the first time.

    Without it, every pass but the first would time a copy (0.3 ms for 504 x 504 px) and no decoding (3 to 8 ms). The
    system's own cache of the file stays.
    """
    import rasterio

    with rasterio.Env(GDAL_CACHEMAX=0):  # reading sets it again
        pass


@contextlib.contextmanager
def open_workload(
    path: Path,
    tasks: Sequence[str],
    session: Session,
    *,
    out: Path,
    anchors: Path | None = None,
    boxes: Sequence[Box] | None = None,
    label: str = "ship",
    values: str = "auto",
) -> Iterator[Workload]:
    """Open a scene and its table for a session's bundle; every tile with a valid pixel takes part."""
    bundle = session.bundle
    order = ordered_tasks(tasks, boxes)
    table = None
    if anchors is not None:
        from fusar_edge.anchors.table import AnchorTable

        table = AnchorTable.open(anchors)
        check_table(bundle, table)
    with open_scene(path, values=values, radiometry=bundle.radiometry) as scene:
        planned = plan_tiles(scene.width, scene.height, bundle.settings.tile_px, bundle.settings.overlap_px)
        windows = [window for window in planned if scene.read(window).valid.any()]
        if not windows:
            raise InputError(f"{path}: no tile holds a valid pixel; give another --scene")
        year = anchor_year_of(table, None, scene.acquired)
        look_up = None if table is None else AnchorLookup(table, year, nearest=True)
        facts = {
            "scene": path.name,
            "scene_sha256": sha256_file(path),
            "simulated": scene.simulated,
            "width": scene.width,
            "height": scene.height,
            "values": scene.kind,
            "tiles": len(windows),
            "tasks": list(order),
            "label": label,
            "boxes_asked_about": None if boxes is None else len(boxes),
            "anchors": None if anchors is None else anchors.name,
        }
        yield Workload(scene, windows, order, label, boxes, look_up, out, facts)


def simulated_workload(folder: Path, bundle: Bundle, size: int) -> tuple[Path, list[Box]]:
    """Scene and, for each tile, the box of one ship whose centre is in it, where there is one."""
    from fusar_edge.data.simulator import simulate_scene
    from fusar_edge.data.simulator.geotiff import write_geotiff

    scene = simulate_scene(SEED, size, SPACING_M, kind=KIND, count=SHIPS)
    path = folder / "simulated.tif"
    write_geotiff(path, scene)
    boxes: dict[Box, None] = {}
    for window in plan_tiles(size, size, bundle.settings.tile_px, bundle.settings.overlap_px):
        right, bottom = window.col_off + window.width, window.row_off + window.height
        for box in scene.boxes:
            x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            if window.col_off <= x < right and window.row_off <= y < bottom:
                boxes[box] = None
                break
    return path, list(boxes)
