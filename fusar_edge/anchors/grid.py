"""Where a tile's anchors stand: a regular N x N grid that includes the tile's edges.

The grid is `linspace(0, 1, N)` both ways, end points included. Position 0 is the centre of the first pixel and 1 that
of the last, which is what TLM assumes (position times patches - 1 is a patch index) and what min-max normalised pixel
positions of the official files are. With N = 1 the one node stands in the middle.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


@functools.lru_cache(maxsize=16)
def grid_positions(nodes: int) -> npt.NDArray[np.float32]:
    """float32 [nodes * nodes, 2], (y, x) in [0, 1], row by row from the top left. Shared: not to be written into."""
    if nodes < 1:
        raise ValueError(f"nodes is {nodes}: give 1 or more")
    axis = np.linspace(0.0, 1.0, nodes) if nodes > 1 else np.array([0.5])
    y, x = np.meshgrid(axis, axis, indexing="ij")
    positions = np.stack([y.ravel(), x.ravel()], axis=1).astype(np.float32)
    positions.flags.writeable = False
    return positions


def grid_pixels(nodes: int, height: int, width: int, row: int = 0, col: int = 0) -> npt.NDArray[np.float64]:
    """float64 [nodes * nodes, 2]: (row, col) of the nodes of a height x width window that starts at (row, col).

    Counted in pixels from the *corner* of the raster, as affine transforms and `rasterio.transform` expect with
    `offset="ul"`: the centre of the window's first pixel is (row + 0.5, col + 0.5).
    """
    last = np.array([height - 1, width - 1], dtype=np.float64)
    return grid_positions(nodes).astype(np.float64) * last + (row + 0.5, col + 0.5)


def tile_xy(
    transform: Sequence[float], height: int, width: int, nodes: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """x and y [nodes * nodes] of a tile's nodes, in the CRS that `transform` leads to.

    transform: (a, b, c, d, e, f) from pixel corners (column, row), as rasterio has it.
    """
    a, b, c, d, e, f = tuple(transform)[:6]
    row, col = grid_pixels(nodes, height, width).T
    return a * col + b * row + c, d * col + e * row + f
