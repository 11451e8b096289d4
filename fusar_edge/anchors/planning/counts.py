"""Counts the cells, chunks and shards that a table of an area will have: one by one, or from square kilometres."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fusar_edge.anchors.areas.area import Area
from fusar_edge.anchors.layout import CHUNK, shard_cells
from fusar_edge.anchors.planning.downloads import Tile
from fusar_edge.anchors.sources.source import Cells

Mask = Callable[[Cells], npt.NDArray[np.bool_]]
"""Window -> bool [rows, cols], the cells wanted."""

EXACT_CELLS = 1 << 24
"""Areas whose boxes hold no more cells are counted cell by cell (a second or two), larger ones by square kilometres."""


class Count(NamedTuple):
    cells: int
    chunks: int
    shards: int

    def plus(self, other: Count) -> Count:
        return Count(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, factor: int) -> Count:
        return Count(*(factor * value for value in self))


def zones_by_strip(area: Area, spacing_m: int, years: int) -> tuple[dict[str, Count], bool]:
    """Without tiles: every zone holds what of the area lies in its own strip. True: they were counted one by one."""
    strips = {zone: part for zone in area.zones() if (part := area.in_strip(zone)) is not None}
    boxes: dict[str, Cells | None] = {}
    if area.km2 * 1e6 <= EXACT_CELLS * spacing_m**2:  # else not worth projecting
        boxes = {zone: part.cells(zone, spacing_m) for zone, part in strips.items()}
    exact = bool(boxes) and sum(_size(box) for box in boxes.values() if box) <= EXACT_CELLS
    counts = {}
    for zone, part in strips.items():
        box = boxes.get(zone)
        if exact and box is not None:
            once = _count(box, shard_cells(spacing_m), functools.partial(part.mask, zone, spacing_m))
        else:
            once = count_from_km2(part.km2, spacing_m)
        counts[zone] = once.times(years)
    return counts, exact


def zones_with_tiles(area: Area | None, spacing_m: int, tiles: Sequence[Tile]) -> tuple[dict[str, Count], bool]:
    """With tiles: a zone holds what of the area its tiles cover, over the strip's edge too. Shards are cut from the
    north-west corner of all tiles of the zone, as `build_table` does."""
    by_zone: dict[str, list[Tile]] = defaultdict(list)
    for tile in tiles:
        by_zone[tile.zone].append(tile)
    parts = {zone: _parts(area, zone, spacing_m, held) for zone, held in sorted(by_zone.items())}
    exact = sum(_size(part) for by_year in parts.values() for part, _ in by_year) <= EXACT_CELLS
    counts: dict[str, Count] = {}
    for zone, by_year in parts.items():
        origin = _union([_tile_cells(tile, spacing_m) for tile in by_zone[zone]])
        for year in sorted({year for _, year in by_year}):
            held = [part for part, of in by_year if of == year]
            if exact:
                count = _count_parts(area, zone, spacing_m, origin, held)
            else:
                share = 1.0 if area is None else _share(area, zone, held, spacing_m)
                count = count_from_km2(share * sum(map(_size, held)) * spacing_m**2 / 1e6, spacing_m)
            if count.cells:
                counts[zone] = counts.get(zone, Count(0, 0, 0)).plus(count)
    return counts, exact


def _parts(area: Area | None, zone: str, spacing_m: int, tiles: list[Tile]) -> list[tuple[Cells, int]]:
    """The cells of each tile, cut to the area's box, and its year."""
    box = None if area is None else area.cells(zone, spacing_m)
    if area is not None and box is None:
        return []
    cells = ((_tile_cells(tile, spacing_m), tile.year) for tile in tiles)
    return [(part, year) for tile, year in cells if (part := tile if box is None else tile.overlap(box))]


def _tile_cells(tile: Tile, spacing_m: int) -> Cells:
    west, south, east, north = tile.bounds
    return Cells(west // spacing_m, south // spacing_m, -(-east // spacing_m), -(-north // spacing_m))


def _count_parts(area: Area | None, zone: str, spacing_m: int, origin: Cells, parts: list[Cells]) -> Count:
    side = shard_cells(spacing_m)
    box = _union(parts)
    west = origin.col0 + (box.col0 - origin.col0) // side * side
    north = origin.row1 - (origin.row1 - box.row1) // side * side

    def mask(window: Cells) -> npt.NDArray[np.bool_]:
        held = np.zeros((window.row1 - window.row0, window.col1 - window.col0), dtype=bool)
        for part in parts:
            if near := part.overlap(window):
                rows = slice(window.row1 - near.row1, window.row1 - near.row0)
                held[rows, near.col0 - window.col0 : near.col1 - window.col0] = True
        return held & area.mask(zone, spacing_m, window) if area is not None and held.any() else held

    return _count(Cells(west, box.row0, box.col1, north), side, mask)


def _count(box: Cells, side: int, mask: Mask) -> Count:
    """Cells, chunks and shards with a cell of a box that is cut from its north-west corner."""
    cells = chunks = shards = 0
    for window in _windows(box, side):
        held = mask(window)
        if held.any():
            rows, cols = (np.arange(0, size, CHUNK) for size in held.shape)
            cells += int(held.sum())
            chunks += int(np.logical_or.reduceat(np.logical_or.reduceat(held, rows, axis=0), cols, axis=1).sum())
            shards += 1
    return Count(cells, chunks, shards)


def _windows(box: Cells, side: int) -> Iterator[Cells]:
    for top in range(box.row1, box.row0, -side):
        for left in range(box.col0, box.col1, side):
            yield Cells(left, max(top - side, box.row0), min(left + side, box.col1), top)


def count_from_km2(km2: float, spacing_m: int) -> Count:
    """Of one year; chunks and shards as if all were full."""
    cells = math.ceil(km2 * 1e6 / spacing_m**2)
    return Count(cells, math.ceil(cells / CHUNK**2), math.ceil(cells / shard_cells(spacing_m) ** 2))


def _share(area: Area, zone: str, parts: list[Cells], spacing_m: int) -> float:
    """Of some parts of a zone, the share that lies in the area: looked at in some points of each, a million in all."""
    across = min(64, max(4, math.isqrt(1_000_000 // len(parts))))
    steps = (np.arange(across) + 0.5) / across
    corners = np.array(parts, dtype=np.float64) * spacing_m
    x = corners[:, 0, None] + (corners[:, 2] - corners[:, 0])[:, None] * steps
    y = corners[:, 1, None] + (corners[:, 3] - corners[:, 1])[:, None] * steps
    x, y = (v.ravel() for v in np.broadcast_arrays(x[:, None, :], y[:, :, None]))
    inside = area.touches(zone, np.stack([x, y, x, y], axis=1), spacing_m).reshape(len(parts), -1).mean(axis=1)
    sizes = np.array([_size(part) for part in parts])
    return float((inside * sizes).sum() / sizes.sum())


def _size(box: Cells) -> int:
    return (box.col1 - box.col0) * (box.row1 - box.row0)


def _union(boxes: Sequence[Cells]) -> Cells:
    first, *others = boxes
    for box in others:
        first = first.union(box)
    return first
