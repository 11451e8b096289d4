"""What a table is built from, and how its sums are counted: cells, layers, and the Source protocol."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

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
    """A file of vectors on a known grid spacing."""

    @property
    def path(self) -> Path: ...

    def layers(self) -> dict[Layer, Cells]:
        """The cells it touches, in each zone and year."""

    def add_to(self, sums: Sums, layer: Layer, window: Cells) -> None:
        """Add its valid vectors that lie in `window`. Raises AnchorError for vectors that are not AlphaEarth's."""


def open_source(path: Path, *, year: int | None, spacing_m: int) -> Source:
    """`.csv` is a table of points, anything else a raster that GDAL opens (GeoTIFF, or the .vrt beside one)."""
    if not path.is_file():
        raise AnchorError(f"{path}: no such file; give AlphaEarth GeoTIFFs or CSV tables")
    from fusar_edge.anchors.points import read_points
    from fusar_edge.anchors.rasters import open_raster

    if path.suffix.lower() == ".csv":
        return read_points(path, year=year, spacing_m=spacing_m)
    if year is None:
        raise AnchorError(f"{path}: a raster does not say its year; give --year")
    return open_raster(path, year=year, spacing_m=spacing_m)
