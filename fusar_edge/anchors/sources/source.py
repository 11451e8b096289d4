"""What a table is built from, and how its sums are counted: cells, layers, and the Source protocol."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from fusar_edge.errors import AnchorError


class Cells(NamedTuple):
    """A box of table cells, numbered from the UTM origin: col eastward, row *northward*; upper ends excluded."""

    col0: int
    row0: int
    col1: int
    row1: int

    def union(self, other: Cells) -> Cells:
        return Cells(
            *(min(a, b) for a, b in zip(self[:2], other[:2], strict=True)),
            *(max(a, b) for a, b in zip(self[2:], other[2:], strict=True)),
        )

    def overlap(self, other: Cells) -> Cells | None:
        box = Cells(
            max(self.col0, other.col0),
            max(self.row0, other.row0),
            min(self.col1, other.col1),
            min(self.row1, other.row1),
        )
        return box if box.col0 < box.col1 and box.row0 < box.row1 else None


class Layer(NamedTuple):
    """One zone and one year: what a source contributes to, and what a table stores as one slice."""

    zone: str
    year: int


class Sums(NamedTuple):
    """The cells of one window being added up, row 0 the northernmost."""

    squares: npt.NDArray[np.int32]
    """[rows, cols, 64], sums of sign(v) v^2."""
    counts: npt.NDArray[np.int32]
    """[rows, cols], vectors added."""


class Source(Protocol):
    """A file of vectors on a known grid spacing. Sources are pickled to workers."""

    @property
    def location(self) -> str:
        """Path or URL."""

    @property
    def cell_is_pixel(self) -> bool:
        """No cell holds two of its vectors: `copy_to` may be used instead of `add_to`."""

    def layers(self) -> dict[Layer, Cells]:
        """The cells it touches, in each zone and year."""

    def part(self, layer: Layer, window: Cells) -> Self | None:
        """What of it can touch a window; None: nothing."""

    def add_to(self, sums: Sums, layer: Layer, window: Cells) -> None:
        """Add its valid vectors that lie in `window`. Raises AnchorError for vectors that are not AlphaEarth's."""

    def copy_to(self, codes: npt.NDArray[np.int8], layer: Layer, window: Cells) -> None:
        """Write the codes of its pixels into codes [rows, cols, 64] of `window`. Raises as `add_to`."""


class SourceFile(NamedTuple):
    """What the user gives: a file, and its year where the file does not say it."""

    location: str
    """Path or URL (https, s3, gs)."""
    year: int | None = None


def source_file(text: str) -> SourceFile:
    """`tile.tif` or `tile.tif@2023`."""
    location, _, year = text.rpartition("@")
    return SourceFile(location, int(year)) if location and re.fullmatch(r"\d{4}", year) else SourceFile(text)


def open_source(file: SourceFile, years: Sequence[int], spacing_m: int, *, overviews: bool = False) -> Source:
    """`.csv` and `.npy` are tables of points, anything else a raster that GDAL opens (GeoTIFF, or a local .vrt).

    `years`: what is wanted; the one year of a raster that brings none itself. Points of other years are left out.
    """
    from fusar_edge.anchors.sources.locations import is_remote, name_of
    from fusar_edge.anchors.sources.points import read_points
    from fusar_edge.anchors.sources.rasters import open_raster

    if not is_remote(file.location) and not Path(file.location).is_file():
        raise AnchorError(f"{file.location}: no such file; give AlphaEarth GeoTIFFs or tables of points")
    year = file.year or (years[0] if len(years) == 1 else None)
    if file.year and years and file.year not in years:
        raise AnchorError(f"{file.location}@{file.year}: not among the years asked for, {', '.join(map(str, years))}")
    if Path(name_of(file.location)).suffix.lower() in (".csv", ".npy", ".npz"):
        if is_remote(file.location):
            raise AnchorError(f"{file.location}: tables of points are read from this machine: download it")
        return read_points(Path(file.location), year=year, spacing_m=spacing_m)
    if year is None:
        raise AnchorError(f"{file.location}: a raster does not say its year; give --year, or {file.location}@YEAR")
    return open_raster(file.location, year=year, spacing_m=spacing_m, overviews=overviews)
