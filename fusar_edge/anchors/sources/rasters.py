"""AlphaEarth rasters as published: 64 int8 bands in a UTM zone, north-up or bottom-up, read window by window."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fusar_edge.anchors.codes import BANDS, LENGTH_TOLERANCE, NODATA
from fusar_edge.anchors.sources.blocks import Planes, runs, summed, valid_pixels, wrong_length
from fusar_edge.anchors.sources.locations import opened, shown
from fusar_edge.anchors.sources.source import Cells, Layer, Sums
from fusar_edge.anchors.zones import zone_from_epsg
from fusar_edge.errors import AnchorError

BLOCK_PIXELS = 1024
"""Side of the windows read from a raster, on multiples of it: the published files' blocks, 64 MiB with 64 bands."""


class Block(NamedTuple):
    """Pixels of one window, and the cells that they lie in."""

    planes: Planes
    valid: npt.NDArray[np.bool_]
    cell_rows: npt.NDArray[np.int64]
    """[rows], counted from the window's north."""
    cell_cols: npt.NDArray[np.int64]


@dataclass(frozen=True)
class RasterSource:
    """A raster of 64 int8 bands, opened again for each window so that no handle is shared or left open."""

    location: str
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
    overview: int | None = None
    """Which of the file's overviews is read; None: its pixels."""

    @property
    def cell_is_pixel(self) -> bool:
        return self.pixel_m == self.spacing_m

    @property
    def bounds_m(self) -> tuple[int, int, int, int]:
        """West, south, east, north, metres."""
        far = self.first + self.height * self.pixel_m * (1 if self.northward else -1)
        south, north = sorted((self.first, far))
        return self.left, south, self.left + self.width * self.pixel_m, north

    def layers(self) -> dict[Layer, Cells]:
        west, south, east, north = self.bounds_m
        s = self.spacing_m
        return {self.layer: Cells(west // s, south // s, -(-east // s), -(-north // s))}

    def part(self, layer: Layer, window: Cells) -> RasterSource | None:
        return self if layer == self.layer and self.layers()[layer].overlap(window) else None

    def add_to(self, sums: Sums, layer: Layer, window: Cells) -> None:
        for block in self._blocks(window):
            rows, row_starts = runs(block.cell_rows)
            cols, col_starts = runs(block.cell_cols)
            squares, counts = summed(block.planes, block.valid, row_starts, col_starts)
            place = np.ix_(rows, cols)
            sums.squares[place] += squares
            sums.counts[place] += counts

    def copy_to(self, codes: npt.NDArray[np.int8], layer: Layer, window: Cells) -> None:
        for block in self._blocks(window):
            if not block.valid.all():
                block.planes[:, ~block.valid] = NODATA  # one band alone masks a pixel
            top, left = int(block.cell_rows.min()), int(block.cell_cols[0])
            rows, cols = block.valid.shape
            turned = block.planes[:, ::-1] if self.northward else block.planes
            codes[top : top + rows, left : left + cols] = turned.transpose(1, 2, 0)

    def _blocks(self, window: Cells) -> Iterator[Block]:
        """The blocks of the file that lie in a window of cells, without those that hold no vector."""
        import rasterio
        from rasterio.windows import Window

        (row0, row1), (col0, col1) = self._pixels(window)
        if row0 >= row1 or col0 >= col1:
            return
        with opened(self.location, overview=self.overview) as dataset:
            for top, bottom in _steps(row0, row1):
                for left, right in _steps(col0, col1):
                    try:
                        planes = dataset.read(window=Window(left, top, right - left, bottom - top))
                    except rasterio.errors.RasterioError as problem:
                        raise AnchorError(
                            f"{shown(self.location)}: cannot be read, it is damaged or truncated ({problem})"
                        ) from None
                    valid = valid_pixels(planes)
                    if valid.any():
                        self._check_lengths(planes, valid, top, left)
                        cells = self._cells(np.arange(top, bottom), np.arange(left, right))
                        yield Block(planes, valid, window.row1 - 1 - cells[0], cells[1] - window.col0)

    def _pixels(self, window: Cells) -> tuple[tuple[int, int], tuple[int, int]]:
        """Row and column ranges of the pixels in a window of cells."""
        s, pixel = self.spacing_m, self.pixel_m
        cols = ((window.col0 * s - self.left) // pixel, (window.col1 * s - self.left) // pixel)
        if self.northward:
            rows = ((window.row0 * s - self.first) // pixel, (window.row1 * s - self.first) // pixel)
        else:
            rows = ((self.first - window.row1 * s) // pixel, (self.first - window.row0 * s) // pixel)
        return _clip(rows, self.height), _clip(cols, self.width)

    def _cells(
        self, rows: npt.NDArray[np.int64], cols: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Cell rows (northward) and columns of rows and columns of pixels."""
        pixel, s = self.pixel_m, self.spacing_m
        lower_edge = self.first + rows * pixel if self.northward else self.first - (rows + 1) * pixel
        return lower_edge // s, (self.left + cols * pixel) // s

    def _check_lengths(self, planes: Planes, valid: npt.NDArray[np.bool_], top: int, left: int) -> None:
        wrong = wrong_length(planes, valid)
        if wrong is not None:
            row, col, length = wrong
            raise AnchorError(
                f"{shown(self.location)}: pixel row {top + row}, column {left + col} decodes to a vector of length "
                f"{length:.3f}; AlphaEarth's are 1 within {LENGTH_TOLERANCE}. Give the original int8 file, not a "
                "rescaled copy"
            )


def open_raster(location: str, *, year: int, spacing_m: int, overviews: bool = False) -> RasterSource:
    """Read a raster's header. AnchorError unless it is 64 bands of int8, nodata -128, in a WGS 84 / UTM zone, on square
    unrotated pixels that lie on multiples of their size, and `spacing_m` is a multiple of that size.

    `overviews`: where `spacing_m` is more than a pixel, read the file's own overview of that spacing (AlphaEarth's are
    re-normalised means) and not its pixels; AnchorError where there is none, or where it lies off the table's grid.
    """
    with opened(location) as dataset:
        source = _raster_from_dataset(dataset, location, year, spacing_m)
        if not overviews or source.cell_is_pixel:
            return source
        level = _overview_level(dataset, source)
    with opened(location, overview=level) as dataset:
        t, s = dataset.transform, spacing_m
        if (t.a, abs(t.e)) != (s, s) or t.c % s or t.f % s:
            raise AnchorError(
                f"{shown(location)}: its overview has pixels of {t.a:g} x {abs(t.e):g} m from ({t.c:g}, {t.f:g}), not "
                f"on multiples of {s} m; build without --overviews"
            )
        return replace(source, pixel_m=s, overview=level, height=dataset.height, width=dataset.width)


def _overview_level(dataset: Any, source: RasterSource) -> int:
    factors = dataset.overviews(1)
    if any(dataset.overviews(band) != factors for band in dataset.indexes):
        raise AnchorError(f"{shown(source.location)}: its bands have different overviews; build without --overviews")
    if source.spacing_m // source.pixel_m not in factors:
        there = ", ".join(str(factor * source.pixel_m) for factor in factors) or "none"
        raise AnchorError(
            f"{shown(source.location)}: no overview of {source.spacing_m} m; there are (metres): {there}. "
            "Change --spacing or build without --overviews"
        )
    return int(factors.index(source.spacing_m // source.pixel_m))


def _raster_from_dataset(dataset: Any, location: str, year: int, spacing_m: int) -> RasterSource:
    if dataset.count != BANDS:
        raise AnchorError(f"{shown(location)}: {dataset.count} bands; an AlphaEarth raster has {BANDS}, A00 to A63")
    if set(dataset.dtypes) != {"int8"}:
        raise AnchorError(f"{shown(location)}: data type {dataset.dtypes[0]}; it must be int8 codes, as published")
    if dataset.nodata not in (None, NODATA):
        raise AnchorError(f"{shown(location)}: nodata is {dataset.nodata:g}; AlphaEarth's is {NODATA}")
    if dataset.crs is None:
        raise AnchorError(f"{shown(location)}: no coordinate reference system; give the file as published (UTM)")
    zone = zone_from_epsg(dataset.crs.to_epsg())
    if zone is None:
        raise AnchorError(
            f"{shown(location)}: its CRS is {dataset.crs.to_string()[:60]}; it must be WGS 84 / UTM (EPSG:326xx or "
            "327xx). Reprojecting degrades the vectors: give the native file"
        )
    t = dataset.transform
    if t.b or t.d or t.a <= 0 or abs(t.e) != t.a or not float(t.a).is_integer():
        raise AnchorError(
            f"{shown(location)}: pixels of {t.a:g} x {t.e:g} m; they must be square, unrotated, of whole metres"
        )
    pixel = int(t.a)
    if t.c % pixel or t.f % pixel:
        raise AnchorError(
            f"{shown(location)}: pixel edges ({t.c:g}, {t.f:g}) are not on multiples of {pixel} m; give the native file"
        )
    if spacing_m % pixel:
        raise AnchorError(
            f"{shown(location)}: spacing {spacing_m} m is not a multiple of its {pixel} m pixels; change --spacing"
        )
    return RasterSource(
        location, Layer(zone, year), spacing_m, pixel, int(t.c), int(t.f), t.e > 0, dataset.height, dataset.width
    )


def _clip(pair: tuple[int, int], size: int) -> tuple[int, int]:
    return max(0, min(size, pair[0])), max(0, min(size, pair[1]))


def _steps(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Ranges from start to stop, cut at multiples of BLOCK_PIXELS."""
    while start < stop:
        end = min(stop, (start // BLOCK_PIXELS + 1) * BLOCK_PIXELS)
        yield start, end
        start = end
