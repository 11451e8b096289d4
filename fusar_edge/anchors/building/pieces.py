"""One piece of a build: read its sources, make the codes, write its shards. It is what a worker gets, pickled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fusar_edge.anchors.building.unfinished import Shard, cannot_be_written
from fusar_edge.anchors.codes import BANDS, NODATA, codes_from_sums
from fusar_edge.anchors.layout import CHUNK, shard_cells, shard_file
from fusar_edge.anchors.sources.source import Cells, Layer, Source, Sums
from fusar_edge.manifest import sha256_file

if TYPE_CHECKING:
    from fusar_edge.anchors.areas.area import Area

BLOCK_CELLS = 1024
"""Side of a piece where a cell is a pixel: the published files' blocks, so that each is decoded once."""


@dataclass(frozen=True)
class Piece:
    """Some whole shards of one zone and year."""

    name: str
    table: Path
    layer: Layer
    year_index: int
    box: Cells
    """Of the zone."""
    window: Cells
    """Of this piece."""
    spacing_m: int
    sources: tuple[Source, ...]
    """Cut to the window."""
    area: Area | None


def piece_cells(spacing_m: int, pixel_m: int | None) -> int:
    """Cells along the side of a piece."""
    return max(shard_cells(spacing_m), BLOCK_CELLS if pixel_m == spacing_m else 0)


def write_piece(piece: Piece) -> tuple[str, list[Shard]]:
    """The piece's name and its shards that hold a vector; a shard without one gets no file.

    AnchorError names a source that cannot be used, or the folder that cannot be written.
    """
    import zarr

    codes = piece_codes(piece)
    if codes is None:
        return piece.name, []
    try:
        array = zarr.open_array(piece.table / piece.layer.zone / "codes", mode="r+", zarr_format=3)
        row, col = piece.box.row1 - piece.window.row1, piece.window.col0 - piece.box.col0
        array[piece.year_index, row : row + codes.shape[0], col : col + codes.shape[1]] = codes
        return piece.name, _shards(piece, codes, row, col)
    except OSError as problem:
        raise cannot_be_written(piece.table, problem) from None


def piece_codes(piece: Piece) -> npt.NDArray[np.int8] | None:
    """int8 [rows, cols, 64], row 0 the northernmost; None where there is no vector."""
    window = piece.window
    rows, cols = window.row1 - window.row0, window.col1 - window.col0
    wanted = None if piece.area is None else piece.area.mask(piece.layer.zone, piece.spacing_m, window)
    if wanted is not None and not wanted.any():
        return None
    if all(source.cell_is_pixel for source in piece.sources):
        planes = np.full((BANDS, rows, cols), NODATA, dtype=np.int8)
        codes = planes.transpose(1, 2, 0)  # planes in memory, as sources and chunks have them
        for source in piece.sources:
            source.copy_to(codes, piece.layer, window)
    else:
        sums = Sums(np.zeros((rows, cols, BANDS), np.int32), np.zeros((rows, cols), np.int32))
        for source in piece.sources:
            source.add_to(sums, piece.layer, window)
        codes = np.empty((BANDS, rows, cols), dtype=np.int8).transpose(1, 2, 0)
        for top in range(0, rows, CHUNK):  # float64 values of a whole shard would take 128 MiB several times over
            band = slice(top, top + CHUNK)
            codes[band] = codes_from_sums(sums.squares[band], sums.counts[band])
    if wanted is not None:
        codes[~wanted] = NODATA
    return codes if (codes[..., 0] != NODATA).any() else None


def _shards(piece: Piece, codes: npt.NDArray[np.int8], row: int, col: int) -> list[Shard]:
    side = shard_cells(piece.spacing_m)
    shards = []
    for top in range(0, codes.shape[0], side):
        for left in range(0, codes.shape[1], side):
            valid = int((codes[top : top + side, left : left + side, 0] != NODATA).sum())
            if valid:
                file = shard_file(piece.layer.zone, piece.year_index, (row + top) // side, (col + left) // side)
                shards.append(Shard(file, sha256_file(piece.table / file), valid))
    return shards
