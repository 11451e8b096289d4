"""What must be downloaded of the published AlphaEarth files for an area: files, blocks, bytes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fusar_edge.anchors.areas.area import Area, Boxes

# The published files: 8192 x 8192 pixels of 10 m, planar, blocks of 1024 x 1024; one of 2024 is 2.12 GB with overviews.
PIXEL_M = 10
TILE_M = 81_920
TILE_BLOCKS = 8
TILE_BYTES = 2_120_000_000
BLOCK_BYTES = TILE_BYTES * 3 // 4 // TILE_BLOCKS**2
"""One block of all 64 bands. Overviews of 1/2, 1/4, ... hold a third of the pixels, so a quarter of the file."""


class Tile(Protocol):
    """`fusar_edge.anchors.sources.index.IndexedTile`: one published file."""

    @property
    def year(self) -> int: ...

    @property
    def zone(self) -> str: ...

    @property
    def bounds(self) -> tuple[int, int, int, int]:
        """West, south, east, north in metres of the zone."""


def listed_downloads(area: Area | None, spacing_m: int, tiles: Sequence[Tile]) -> dict[str, Any]:
    """Files of the index and their blocks that the area touches."""
    factor = _overview_factor(spacing_m)
    by_zone: dict[str, list[tuple[int, int, int, int]]] = defaultdict(list)
    for tile in tiles:
        by_zone[tile.zone].append(tile.bounds)
    files = blocks = 0
    overview_blocks = 0.0
    for zone, bounds in by_zone.items():
        touched = _touched(area, zone, bounds, TILE_BLOCKS)
        files, blocks = files + int((touched > 0).sum()), blocks + int(touched.sum())
        if factor:
            across = max(1, TILE_BLOCKS // factor)
            overview_blocks += _touched(area, zone, bounds, across).sum() * _overview_block(factor)
    return _downloads("index", files, blocks, overview_blocks if factor else None)


def estimated_downloads(km2: float, spacing_m: int, years: int) -> dict[str, Any]:
    """As if the area were one square at a random place on the grid of tiles: at least so much."""

    def squares(side_m: float) -> int:
        return math.ceil((math.sqrt(km2 * 1e6) / side_m + 1) ** 2) * years

    factor = _overview_factor(spacing_m)
    block_m = TILE_M / TILE_BLOCKS
    overview = squares(block_m * min(factor, TILE_BLOCKS)) * _overview_block(factor) if factor else None
    return _downloads("estimate", squares(TILE_M), squares(block_m), overview)


def _touched(
    area: Area | None, zone: str, bounds: list[tuple[int, int, int, int]], across: int
) -> npt.NDArray[np.int64]:
    """int [tiles]: how many of their across x across blocks the area touches."""
    if area is None:
        return np.full(len(bounds), across * across)
    boxes = np.concatenate([_blocks(*tile, across) for tile in bounds])
    return area.touches(zone, boxes).reshape(len(bounds), -1).sum(axis=1)


def _blocks(west: int, south: int, east: int, north: int, across: int) -> Boxes:
    x, y = np.linspace(west, east, across + 1), np.linspace(south, north, across + 1)
    left, bottom = (v.ravel() for v in np.meshgrid(x[:-1], y[:-1]))
    right, top = (v.ravel() for v in np.meshgrid(x[1:], y[1:]))
    return np.stack([left, bottom, right, top], axis=1)


def _overview_factor(spacing_m: int) -> int | None:
    """Pixels of the published overview of this spacing, counted in full ones; None where there is none."""
    factor = spacing_m // PIXEL_M
    return factor if factor * PIXEL_M == spacing_m and factor >= 2 and factor & (factor - 1) == 0 else None


def _overview_block(factor: int) -> float:
    """Size of an overview's block, in whole blocks: the ninth and later levels have one that is not full."""
    return min(1.0, TILE_BLOCKS / factor) ** 2


def _downloads(origin: str, files: int, blocks: int, overview_blocks: float | None) -> dict[str, Any]:
    """`bytes_overviews`: to read with `--overviews`, None where the spacing has none."""
    return {
        "from": origin,
        "files": files,
        "blocks": blocks,
        "bytes_of_files": files * TILE_BYTES,
        "bytes_to_read": blocks * BLOCK_BYTES,
        "bytes_overviews": None if overview_blocks is None else round(overview_blocks * BLOCK_BYTES),
    }
