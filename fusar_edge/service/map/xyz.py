"""One map tile: the scene's grey, as the model sees it, warped to Web Mercator.

The pixels are `Scene.read`'s or the preview's, and GDAL warps them by the scene's own place, given as 9 x 9 points. Not
by rio-tiler's Reader, which is the oracle of the tests: it averages decibels, which hides a ship in the sea around it,
and lays a plane through GCPs (on Sentinel-1 quick-looks up to 2 px from where answers are placed).
"""

from __future__ import annotations

import functools
import io
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fusar_edge.sar.scene import Scene
from fusar_edge.sar.tiles import TileWindow
from fusar_edge.service.map.ground import WORLD_M, Bounds, Patch, nodes, patch_under, resolution_m
from fusar_edge.service.map.preview import Image, picture_from_scene, preview_factor, read_preview

TILE_PX = 256
MAP_CRS = "EPSG:3857"
HIGHEST_ZOOM = 22
Tone = Literal["model", "lifted"]
"""The grey that the model sees, or its square root: what is dark comes out, for people."""
POINTS = 8
"""Cells per side of the points that the warp is given."""


def native_zoom(scene: Scene) -> int:
    """The zoom from which on tiles show no more: pixels of the scene are at least as large as the tile's."""
    return min(max(math.ceil(math.log2(WORLD_M / (TILE_PX * resolution_m(scene)))), 0), HIGHEST_ZOOM)


def tile_bounds(z: int, x: int, y: int) -> Bounds:
    """Metres of the map; rows go south."""
    side = WORLD_M / 2**z
    left, top = x * side - WORLD_M / 2, WORLD_M / 2 - y * side
    return left, top - side, left + side, top


def paint_tile(scene: Scene, preview: Path | None, z: int, x: int, y: int, tone: Tone = "model") -> bytes | None:
    """PNG of 256 x 256 px, grey and alpha; transparent where the scene is not.

    `preview` is the scene's copy, None where there is none (yet); without it None is returned for the zooms of a large
    scene that need it. SceneError where the file cannot be read any more.
    """
    bounds = tile_bounds(z, x, y)
    patch = patch_under(scene, bounds)
    if patch is None:
        return empty_tile()
    step = (bounds[2] - bounds[0]) / TILE_PX / resolution_m(scene)
    factor = preview_factor(scene.width, scene.height)
    if preview is not None and factor and step >= factor:
        picture, scale = _from_preview(preview, patch.window, factor, step)
    elif factor and step >= 2 * factor:
        return None  # hundreds of megabytes would be read for one tile
    else:
        picture, scale = picture_from_scene(scene, patch.window), (1.0, 1.0)
    tile = _warped(picture, _points(scene, patch, scale), bounds, step > 1.2)
    if tone == "lifted":
        tile[0] = np.rint(np.sqrt(np.arange(256) / 255) * 255).astype(np.uint8)[tile[0]]
    return _png(tile)


@functools.cache
def empty_tile() -> bytes:
    return _png(np.zeros((2, TILE_PX, TILE_PX), np.uint8))


def _from_preview(path: Path, window: TileWindow, factor: int, step: float) -> tuple[Image, tuple[float, float]]:
    """The copy's pixels under a window of the scene, and pixels of the scene per pixel read (x, y)."""
    row, col = window.row_off // factor, window.col_off // factor
    bottom = math.ceil((window.row_off + window.height) / factor)
    right = math.ceil((window.col_off + window.width) / factor)
    part = TileWindow(row, col, bottom - row, right - col)
    fewer = max(math.floor(step / factor), 1)
    shape = math.ceil(part.height / fewer), math.ceil(part.width / fewer)
    scale = factor * part.width / shape[1], factor * part.height / shape[0]
    return read_preview(path, part, shape), scale


def _points(scene: Scene, patch: Patch, scale: tuple[float, float]) -> list[Any]:
    """Control points of the picture that was read: its pixels and their metres on the map."""
    from rasterio.control import GroundControlPoint

    xs, ys, east, north = nodes(scene, patch.window, POINTS)
    col, row = (xs - patch.window.col_off) / scale[0], (ys - patch.window.row_off) / scale[1]
    table = np.stack([row, col, east - patch.turn * WORLD_M, north], axis=-1).reshape(-1, 4)
    table = table[np.isfinite(table).all(axis=1)]
    return [GroundControlPoint(row=r, col=c, x=x, y=y) for r, c, x, y in table.tolist()]


def _warped(picture: Image, points: list[Any], bounds: Bounds, smaller: bool) -> Image:
    import rasterio
    from rasterio.enums import ColorInterp, Resampling
    from rasterio.io import MemoryFile
    from rasterio.transform import Affine
    from rasterio.warp import reproject

    side = (bounds[2] - bounds[0]) / TILE_PX
    tile = np.zeros((2, TILE_PX, TILE_PX), np.uint8)
    # A file, though in memory: rasterio warns of an array without a place before it gives it its points, and hides the
    # warning in a way that threads cannot share.
    form = {"driver": "GTiff", "count": 2, "height": picture.shape[1], "width": picture.shape[2], "dtype": "uint8"}
    with MemoryFile() as memory:
        with memory.open(**form, gcps=points, crs=MAP_CRS) as file:
            file.colorinterp = [ColorInterp.gray, ColorInterp.alpha]
            file.write(picture)
        with memory.open() as file:
            reproject(
                rasterio.band(file, [1, 2]),
                tile,
                dst_crs=MAP_CRS,
                dst_transform=Affine(side, 0, bounds[0], 0, -side, bounds[3]),
                resampling=Resampling.rms if smaller else Resampling.bilinear,
                src_alpha=2,
                dst_alpha=2,
                SRC_METHOD="GCP_TPS",
            )
    return tile


def _png(tile: Image) -> bytes:
    """Of [2, h, w]. Half-transparent edges are made whole or nothing: they would darken the ground behind them."""
    from PIL import Image as Picture

    grey, alpha = tile[0], np.where(tile[1] < 128, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Picture.merge("LA", (Picture.fromarray(grey), Picture.fromarray(alpha))).save(file, "PNG", compress_level=3)
    return file.getvalue()
