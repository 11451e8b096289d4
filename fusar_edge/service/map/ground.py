"""Where a scene lies in Web Mercator (EPSG:3857): the part of it under a map tile, its resolution and its bounds.

All of it comes from `Scene.lonlat`, the same place that answers are given: affine and GCP scenes alike, and scenes
across the antimeridian, whose longitudes go on beyond 180 degrees.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fusar_edge.sar.scene import Scene
from fusar_edge.sar.tiles import TileWindow

Array = npt.NDArray[np.float64]
Bounds = tuple[float, float, float, float]
"""left, bottom, right, top."""

RADIUS_M = 6_378_137.0
WORLD_M = 2 * math.pi * RADIUS_M
HIGHEST_LAT = 85.05112878
"""Where the square map ends."""
CELLS = 16
PASSES = 4
"""A window is narrowed down on a grid of 16 x 16 cells so often: 29,400 px come down to the tile's own in three."""


@dataclass(frozen=True)
class Patch:
    """The part of a scene under a map tile."""

    window: TileWindow
    turn: int
    """Times 360 degrees that the scene's longitudes are away from the map's: -1, 0 or 1."""


def mercator(lon: npt.ArrayLike, lat: npt.ArrayLike) -> tuple[Array, Array]:
    """Metres east and north; beyond 85.05 degrees of latitude the edge of the map."""
    rad = np.deg2rad(np.clip(np.asarray(lat, np.float64), -HIGHEST_LAT, HIGHEST_LAT))
    return np.asarray(lon, np.float64) * (WORLD_M / 360.0), RADIUS_M * np.arcsinh(np.tan(rad))


def nodes(scene: Scene, window: TileWindow, cells: int = CELLS) -> tuple[Array, Array, Array, Array]:
    """Pixel (x, y) of the (cells + 1)^2 nodes over a window, and their metres (east, north); each [cells + 1] * 2."""
    x = np.linspace(window.col_off, window.col_off + window.width, cells + 1)
    y = np.linspace(window.row_off, window.row_off + window.height, cells + 1)
    xs, ys = np.meshgrid(x, y)
    return xs, ys, *mercator(*scene.lonlat(xs, ys))


def patch_under(scene: Scene, bounds: Bounds) -> Patch | None:
    """What of the scene lies in `bounds` (metres), with a margin; None where nothing does."""
    for turn in (0, 1, -1):
        window: TileWindow | None = TileWindow(0, 0, scene.height, scene.width)
        for _ in range(PASSES):
            assert window is not None
            before, window = window, _narrowed(scene, window, bounds, turn * WORLD_M)
            if window is None:
                break
            if window.width * window.height > 0.8 * before.width * before.height:
                return Patch(window, turn)
        if window is not None:
            return Patch(window, turn)
    return None


def resolution_m(scene: Scene) -> float:
    """Side of a pixel at the scene's centre, metres of the map (not of the ground)."""
    x, y = scene.width / 2, scene.height / 2
    east, north = mercator(*scene.lonlat([x, x + 1, x], [y, y, y + 1]))
    return math.sqrt(abs((east[1] - east[0]) * (north[2] - north[0]) - (east[2] - east[0]) * (north[1] - north[0])))


def bounds_deg(scene: Scene) -> Bounds:
    """West, south, east, north of the scene's outline; east is above 180 across the antimeridian."""
    rim = _rim(scene.width, scene.height)
    lon, lat = scene.lonlat(rim[:, 0], rim[:, 1])
    shift = 360.0 if np.nanmin(lon) < -180.0 else 0.0
    west, east = float(np.nanmin(lon)) + shift, float(np.nanmax(lon)) + shift
    return west, float(np.nanmin(lat)), east, float(np.nanmax(lat))


def tile_plan(scene: Scene, windows: list[TileWindow]) -> dict[str, Any]:
    """GeoJSON of the tiles' outlines, four corners each: for a map to draw, not the footprint of an answer."""
    corners = np.array([_corners(window) for window in windows], np.float64).reshape(-1, 4, 2)
    lon, lat = scene.lonlat(corners[..., 0], corners[..., 1])
    rings = np.stack([lon, lat], axis=-1)[:, [0, 1, 2, 3, 0]].round(6)
    features = [
        {"type": "Feature", "id": index, "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {}}
        for index, ring in enumerate(rings.tolist())
    ]
    return {"type": "FeatureCollection", "features": features}


def _narrowed(scene: Scene, window: TileWindow, bounds: Bounds, shift_m: float) -> TileWindow | None:
    """The cells of a grid over `window` that touch `bounds`, and one more on each side: an edge may bulge."""
    xs, ys, east, north = nodes(scene, window)
    low_e, high_e = _extremes(east - shift_m)
    low_n, high_n = _extremes(north)
    left, bottom, right, top = bounds
    with np.errstate(invalid="ignore"):  # nan: a place that the CRS cannot express
        touched = (high_e >= left) & (low_e <= right) & (high_n >= bottom) & (low_n <= top)
    rows, cols = np.nonzero(touched)
    if not rows.size:
        return None
    x, y = xs[0], ys[:, 0]
    x0, x1 = x[max(cols.min() - 1, 0)], x[min(cols.max() + 2, CELLS)]
    y0, y1 = y[max(rows.min() - 1, 0)], y[min(rows.max() + 2, CELLS)]
    row, col = int(y0), int(x0)
    height, width = min(math.ceil(y1), scene.height) - row, min(math.ceil(x1), scene.width) - col
    return TileWindow(row, col, height, width)


def _extremes(values: Array) -> tuple[Array, Array]:
    """Least and greatest of each cell's four corners: [n + 1, n + 1] -> twice [n, n]."""
    four = np.stack([values[:-1, :-1], values[:-1, 1:], values[1:, :-1], values[1:, 1:]])
    return four.min(axis=0), four.max(axis=0)


def _rim(width: int, height: int, steps: int = 32) -> Array:
    """Points [4 * steps, 2] along the outline of a scene, pixels."""
    t = np.linspace(0.0, 1.0, steps)
    sides: Iterator[Array] = iter(
        [np.stack([t, 0 * t], 1), np.stack([t, 0 * t + 1], 1), np.stack([0 * t, t], 1), np.stack([0 * t + 1, t], 1)]
    )
    return np.concatenate(list(sides)) * (width, height)


def _corners(window: TileWindow) -> list[tuple[int, int]]:
    """Counter-clockwise on the ground where rows go south: upper left, lower left, lower right, upper right."""
    left, top = window.col_off, window.row_off
    right, bottom = left + window.width, top + window.height
    return [(left, top), (left, bottom), (right, bottom), (right, top)]
