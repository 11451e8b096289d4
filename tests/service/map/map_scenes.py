"""Scenes whose pixels say where they are."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import Affine

from fusar_edge.sar.scene import Scene
from fusar_edge.service.map.ground import WORLD_M, mercator

UTM = {"crs": "EPSG:32611", "transform": Affine(10, 0, 380_000, 0, -10, 3_735_000)}
"""10 m pixels off Los Angeles."""


def write_scene(path: Path, values: Any, **profile: Any) -> Path:
    """A GeoTIFF of one band; by default at `UTM`."""
    profile = profile if {"gcps", "transform"} & set(profile) else {**UTM, **profile}
    shape = {"count": 1, "height": values.shape[0], "width": values.shape[1], "dtype": values.dtype}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver="GTiff", **shape, **profile) as file:
            file.write(values, 1)
    return path


def dots(height: int, width: int, every: int = 100) -> npt.NDArray[np.uint8]:
    """Dark, with bright squares of 5 x 5 px around the middle of each `every` x `every` block."""
    values = np.full((height, width), 20, np.uint8)
    for row in range(every // 2, height, every):
        for col in range(every // 2, width, every):
            values[row - 2 : row + 3, col - 2 : col + 3] = 255
    return values


def bent_gcps(height: int, width: int) -> list[GroundControlPoint]:
    """Points of an image that no plane fits: its rows bend by several pixels. About 10 m pixels in degrees."""
    points = []
    for row in np.linspace(0, height, 6):
        for col in np.linspace(0, width, 6):
            bend = 12e-4 * np.sin(np.pi * col / width)
            points.append(GroundControlPoint(row=row, col=col, x=-118 + 1e-4 * col, y=33.7 - 1e-4 * row + bend))
    return points


def tile_over(scene: Scene, x: float, y: float, zoom: int) -> tuple[int, int]:
    """Column and row of the map tile that a pixel of the scene lies in."""
    (col, row), side = _tile_px(scene, x, y, zoom), 2**zoom
    return int(col // 256) % side, int(row // 256)


def pixel_in_tile(scene: Scene, x: float, y: float, zoom: int) -> tuple[float, float]:
    """Where in that tile, px from its upper left corner."""
    col, row = _tile_px(scene, x, y, zoom)
    return col % 256, row % 256


def opened_png(png: bytes) -> npt.NDArray[np.uint8]:
    """Grey and alpha [2, h, w]."""
    with Image.open(io.BytesIO(png)) as file:
        grey, alpha = file.convert("LA").split()
        return np.stack([np.asarray(grey), np.asarray(alpha)])


def _tile_px(scene: Scene, x: float, y: float, zoom: int) -> tuple[float, float]:
    east, north = mercator(*scene.lonlat(x, y))
    scale = 256 * 2**zoom / WORLD_M
    return (float(east) + WORLD_M / 2) * scale, (WORLD_M / 2 - float(north)) * scale
