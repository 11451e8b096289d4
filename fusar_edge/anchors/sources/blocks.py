"""A block of AlphaEarth pixels as GDAL reads it, one plane per band: checked, and summed into cells.

Everything here runs plane by plane: a plane of 1024 x 1024 codes and what is computed from it stay in the processor's
cache, and the blocks of the published files are exactly such planes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fusar_edge.anchors.codes import BANDS, LENGTH_TOLERANCE, NODATA

UNIT = 127.5**4
"""Sum of v^4 over the bands of a vector of length 1."""

Planes = npt.NDArray[np.int8]
"""[64, rows, cols]"""


def valid_pixels(planes: Planes) -> npt.NDArray[np.bool_]:
    """bool [rows, cols], True where no band is NODATA."""
    return planes.min(axis=0) != NODATA


def wrong_length(planes: Planes, valid: npt.NDArray[np.bool_]) -> tuple[int, int, float] | None:
    """(row, col, length) of the first valid pixel whose vector is not of length 1 within LENGTH_TOLERANCE."""
    fourth = np.zeros(planes.shape[1:], dtype=np.float32)
    for plane in planes:
        square = plane.astype(np.float32)
        np.square(square, out=square)
        np.square(square, out=square)
        fourth += square
    low, high = (1 - LENGTH_TOLERANCE) ** 2 * UNIT, (1 + LENGTH_TOLERANCE) ** 2 * UNIT
    bad = valid & ((fourth < low) | (fourth > high))
    if not bad.any():
        return None
    row, col = np.argwhere(bad)[0]
    return int(row), int(col), float(np.sqrt(fourth[row, col] / UNIT))


def summed(
    planes: Planes, valid: npt.NDArray[np.bool_], rows: npt.NDArray[np.int64], cols: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Sums of sign(v) v^2 over the valid pixels of each cell, [len(rows), len(cols), 64], and their counts.

    `rows` and `cols`: first pixel of each run of pixels that lie in one cell.
    """
    sums = np.empty((BANDS, len(rows), len(cols)), dtype=np.int32)
    for band, plane in enumerate(planes):
        wide = plane.astype(np.int16)
        wide *= np.abs(wide)
        wide *= valid
        sums[band] = _sum_runs(wide, rows, cols)
    return sums.transpose(1, 2, 0), _sum_runs(valid.astype(np.int16), rows, cols)


def runs(cells: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Values and starts of the runs of equal, neighbouring values."""
    starts = np.flatnonzero(np.diff(cells, prepend=cells[0] - 1))
    return cells[starts], starts


def _sum_runs(
    values: npt.NDArray[Any], rows: npt.NDArray[np.int64], cols: npt.NDArray[np.int64]
) -> npt.NDArray[np.int32]:
    """int16 [h, w] -> int32 [len(rows), len(cols)]"""
    height, width = values.shape
    factor = height // len(rows)
    if np.array_equal(rows, np.arange(0, height, factor)) and factor * len(rows) == height:
        down = values.reshape(len(rows), factor, width).sum(axis=1, dtype=np.int32)
    else:
        down = np.add.reduceat(values, rows, axis=0, dtype=np.int32)
    if len(cols) == width:
        return down
    return np.add.reduceat(down, cols, axis=1, dtype=np.int32)
