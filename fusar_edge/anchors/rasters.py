"""AlphaEarth rasters as published: 64 int8 bands in a UTM zone, north-up or bottom-up, read window by window."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fusar_edge.anchors.codes import (
    BANDS,
    LENGTH_TOLERANCE,
    NODATA,
    squares_from_codes,
    unit_length,
    valid_from_codes,
)
from fusar_edge.anchors.sources import Cells, Layer, Sums
from fusar_edge.anchors.zones import zone_from_epsg
from fusar_edge.errors import AnchorError

BLOCK_PIXELS = 256
"""Side of the windows read from a raster: 4 MiB of codes, and about 60 MiB with what is computed from them."""


@dataclass(frozen=True)
class RasterSource:
    """A raster of 64 int8 bands, opened again for each window so that no handle is shared or left open."""

    path: Path
    layer: Layer
    spacing_m: int
    pixel_m: int
    left: int
    """Easting of the left edge, metres."""
    first: int
    """Northing of the edge of row 0, metres: the top of a north-up file, the bottom of a bottom-up one."""
    northward: bool
    """Rows run northward: Source Cooperative's files, with a positive y resolution."""
    height: int
    width: int

    def layers(self) -> dict[Layer, Cells]:
        far = self.first + self.height * self.pixel_m * (1 if self.northward else -1)
        bottom, top = sorted((self.first, far))
        right, s = self.left + self.width * self.pixel_m, self.spacing_m
        return {self.layer: Cells(self.left // s, bottom // s, -(-right // s), -(-top // s))}

    def add_to(self, sums: Sums, layer: Layer, window: Cells) -> None:
        import rasterio
        from rasterio.windows import Window

        if layer != self.layer:
            return
        (row0, row1), (col0, col1) = self._pixels(window)
        if row0 >= row1 or col0 >= col1:
            return
        try:
            with rasterio.open(self.path) as dataset:
                for row in range(row0, row1, BLOCK_PIXELS):
                    for col in range(col0, col1, BLOCK_PIXELS):
                        size = (min(BLOCK_PIXELS, col1 - col), min(BLOCK_PIXELS, row1 - row))
                        bands = dataset.read(window=Window(col, row, *size))
                        self._add_block(sums, window, np.ascontiguousarray(np.moveaxis(bands, 0, -1)), row, col)
        except rasterio.errors.RasterioError as problem:
            raise AnchorError(f"{self.path}: cannot be read, it is damaged or truncated ({problem})") from None

    def _pixels(self, window: Cells) -> tuple[tuple[int, int], tuple[int, int]]:
        """Row and column ranges of the pixels in a window of cells."""
        s, pixel = self.spacing_m, self.pixel_m
        cols = ((window.col0 * s - self.left) // pixel, (window.col1 * s - self.left) // pixel)
        if self.northward:
            rows = ((window.row0 * s - self.first) // pixel, (window.row1 * s - self.first) // pixel)
        else:
            rows = ((self.first - window.row1 * s) // pixel, (self.first - window.row0 * s) // pixel)
        return _clip(rows, self.height), _clip(cols, self.width)

    def _add_block(self, sums: Sums, window: Cells, codes: npt.NDArray[np.int8], row: int, col: int) -> None:
        """Add codes [h, w, 64] whose first pixel is (row, col): runs of pixels in one cell are summed, then placed."""
        valid = valid_from_codes(codes)
        if not valid.any():
            return
        squares = squares_from_codes(codes)
        self._check_lengths(squares, valid, row, col)
        squares[~valid] = 0
        pixel, s = self.pixel_m, self.spacing_m
        rows, cols = row + np.arange(codes.shape[0]), col + np.arange(codes.shape[1])
        north = self.first + rows * pixel if self.northward else self.first - (rows + 1) * pixel  # of the lower edge
        cell_rows, row_starts = _runs(window.row1 - 1 - north // s)
        cell_cols, col_starts = _runs((self.left + cols * pixel) // s - window.col0)
        place = np.ix_(cell_rows, cell_cols)
        sums.squares[place] += _sum_runs(squares, row_starts, col_starts)
        sums.counts[place] += _sum_runs(valid, row_starts, col_starts)

    def _check_lengths(self, squares: npt.NDArray[np.int16], valid: npt.NDArray[np.bool_], row: int, col: int) -> None:
        vectors = squares.astype(np.float32) / np.float32(127.5**2)
        bad = valid & ~unit_length(vectors)
        if bad.any():
            y, x = np.argwhere(bad)[0]
            length = float(np.linalg.norm(vectors[y, x]))
            raise AnchorError(
                f"{self.path}: pixel row {row + y}, column {col + x} decodes to a vector of length {length:.3f}; "
                f"AlphaEarth's are 1 within {LENGTH_TOLERANCE}. Give the original int8 file, not a rescaled copy"
            )


def open_raster(path: Path, *, year: int, spacing_m: int) -> RasterSource:
    """Read a raster's header. AnchorError unless it is 64 bands of int8, nodata -128, in a WGS 84 / UTM zone, on square
    unrotated pixels that lie on multiples of their size, and `spacing_m` is a multiple of that size."""
    import rasterio

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(path) as dataset:
                return _raster_from_dataset(dataset, path, year, spacing_m)
    except rasterio.errors.RasterioError as problem:
        raise AnchorError(f"{path}: GDAL cannot open it ({problem}); give an AlphaEarth GeoTIFF or CSV") from None


def _raster_from_dataset(dataset: Any, path: Path, year: int, spacing_m: int) -> RasterSource:
    if dataset.count != BANDS:
        raise AnchorError(f"{path}: {dataset.count} bands; an AlphaEarth raster has {BANDS}, A00 to A63")
    if set(dataset.dtypes) != {"int8"}:
        raise AnchorError(f"{path}: data type {dataset.dtypes[0]}; it must be int8 codes, as published")
    if dataset.nodata not in (None, NODATA):
        raise AnchorError(f"{path}: nodata is {dataset.nodata:g}; AlphaEarth's is {NODATA}")
    if dataset.crs is None:
        raise AnchorError(f"{path}: no coordinate reference system; give the file as published (UTM)")
    zone = zone_from_epsg(dataset.crs.to_epsg())
    if zone is None:
        raise AnchorError(
            f"{path}: its CRS is {dataset.crs.to_string()[:60]}; it must be WGS 84 / UTM (EPSG:326xx or 327xx). "
            "Reprojecting degrades the vectors: give the native file"
        )
    t = dataset.transform
    if t.b or t.d or t.a <= 0 or abs(t.e) != t.a or not float(t.a).is_integer():
        raise AnchorError(f"{path}: pixels of {t.a:g} x {t.e:g} m; they must be square, unrotated, of whole metres")
    pixel = int(t.a)
    if t.c % pixel or t.f % pixel:
        raise AnchorError(
            f"{path}: pixel edges ({t.c:g}, {t.f:g}) are not on multiples of {pixel} m; give the native file"
        )
    if spacing_m % pixel:
        raise AnchorError(f"{path}: spacing {spacing_m} m is not a multiple of its {pixel} m pixels; change --spacing")
    return RasterSource(
        path, Layer(zone, year), spacing_m, pixel, int(t.c), int(t.f), t.e > 0, dataset.height, dataset.width
    )


def _clip(pair: tuple[int, int], size: int) -> tuple[int, int]:
    return max(0, min(size, pair[0])), max(0, min(size, pair[1]))


def _runs(cells: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Values and starts of the runs of equal, neighbouring values."""
    starts = np.flatnonzero(np.diff(cells, prepend=cells[0] - 1))
    return cells[starts], starts


def _sum_runs(
    values: npt.NDArray[Any], rows: npt.NDArray[np.int64], cols: npt.NDArray[np.int64]
) -> npt.NDArray[np.int32]:
    """[h, w, ...] -> [len(rows), len(cols), ...]"""
    if len(rows) == values.shape[0] and len(cols) == values.shape[1]:
        return values.astype(np.int32)
    return np.add.reduceat(np.add.reduceat(values, rows, axis=0, dtype=np.int32), cols, axis=1, dtype=np.int32)
