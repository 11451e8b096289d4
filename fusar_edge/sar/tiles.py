"""Cuts a scene into overlapping windows."""

from __future__ import annotations

from dataclasses import dataclass

from fusar_edge.errors import InputError


@dataclass(frozen=True, slots=True)
class TileWindow:
    """A rectangle of whole pixels inside a scene."""

    row_off: int
    """First row, 0 = top."""
    col_off: int
    """First column, 0 = left."""
    height: int
    """Rows."""
    width: int
    """Columns."""


def plan_tiles(width: int, height: int, tile_px: int = 504, overlap_px: int = 64) -> list[TileWindow]:
    """Windows that cover a scene of `width` x `height` px, row by row, neighbours sharing at least `overlap_px`.

    The last window of a row or column is shifted inwards, so that every window is `tile_px` square and inside the
    scene; a scene smaller than a tile gives windows of the scene's own size there.
    """
    if width < 1 or height < 1:
        raise InputError(f"a scene of {width} x {height} px has no tiles; both sides must be at least 1")
    if not 0 <= overlap_px < tile_px:
        raise InputError(f"overlap of {overlap_px} px with tiles of {tile_px} px; allowed is 0 <= overlap < tile")
    rows = _starts(height, tile_px, overlap_px)
    cols = _starts(width, tile_px, overlap_px)
    return [TileWindow(r, c, min(tile_px, height), min(tile_px, width)) for r in rows for c in cols]


def _starts(length: int, tile_px: int, overlap_px: int) -> list[int]:
    """First pixels of the windows along one axis."""
    last = max(length - tile_px, 0)
    return [*range(0, last, tile_px - overlap_px), last]
