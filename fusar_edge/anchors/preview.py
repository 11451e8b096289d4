"""A picture of a table: the first three principal components of its vectors as red, green and blue."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fusar_edge.anchors.areas.area import Area, area_from_bounds
from fusar_edge.anchors.areas.polygons import clipped, continuous, joined, shifted
from fusar_edge.anchors.codes import vectors_from_codes
from fusar_edge.anchors.layout import CHUNK
from fusar_edge.anchors.table import AnchorTable
from fusar_edge.errors import AnchorError
from fusar_edge.manifest import check_output, output_file

WIDTHS_PX = (16, 4096)
MOST_PIXELS = 1 << 22
"""64 MiB of codes for each megapixel are held at once."""
FITTED = 20_000
"""Vectors that the components are fitted to."""
STRETCH = (2.0, 98.0)
"""Percentiles that become 0 and 255."""
CHUNKS_AT_ONCE = 256
"""Decoded chunks that one look-up may hold: 64 MiB."""
NODES_AT_ONCE = 1 << 17
DEGREE_M = 111_320.0

Floats = npt.NDArray[np.floating]


class Grid(NamedTuple):
    """Pixels of equal steps in longitude and latitude, north up."""

    west: float
    north: float
    lon_step: float
    lat_step: float
    width: int
    height: int

    def lonlat(self, pixels: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Centres of pixels counted row by row from the north-west; longitudes may go beyond 180."""
        row, col = np.divmod(pixels, self.width)
        return self.west + (col + 0.5) * self.lon_step, self.north - (row + 0.5) * self.lat_step


class Components(NamedTuple):
    """Of vectors [S, bands]."""

    mean: Floats
    axes: Floats
    """[bands, 3]; where there is less than three dimensions of variance the others are 0."""
    low: Floats
    high: Floats
    explained: list[float]
    """Shares of the variance."""


def write_preview(
    table: AnchorTable,
    out: Path,
    *,
    year: int | None = None,
    bounds: Sequence[float] | None = None,
    width_px: int = 1024,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write a PNG of the table and return what it shows.

    `bounds`: [west, south, east, north] in degrees, west > east across the antimeridian; None: the area that the table
    was built for. `year` None: the latest. Pixels are equal steps of longitude and latitude, square in metres at the
    middle latitude; each shows the anchor it lies on, none is transparent. Colours are those of this picture: its own
    components and stretch. Memory: below 600 MiB. `progress(done, total)` counts pixels. Raises AnchorError and
    OutputExistsError, which leave no output behind.
    """
    out = Path(out)
    check_output(out, force)
    shown = _year(table, year)
    area = _extent(table) if bounds is None else _area_from(bounds)
    grid = _grid(area, width_px, out)
    blocks, found, counts = _looked_up(table, grid, shown, progress)
    if not found.any():
        raise AnchorError(
            f"{table.path}: no vector of {shown} within {_text(area.bounds)}; give other bounds or another year"
        )
    components = fitted_components(_vectors(table, _every(-(-int(found.sum()) // FITTED), blocks)))
    rgba = np.full((grid.height * grid.width, 4), 255, dtype=np.uint8)
    rgba[~found] = 0
    rgba[found, :3] = np.concatenate([coloured(_vectors(table, block), components) for block in blocks])
    _write_png(out, rgba.reshape(grid.height, grid.width, 4), _labels(table, shown, area), force)
    return {
        "png": str(out),
        "width": grid.width,
        "height": grid.height,
        "bounds": [round(v, 6) for v in area.bounds],
        "year": shown,
        "explained_variance": [round(share, 4) for share in components.explained],
        "found": counts["found"],
        "masked": counts["masked"],
    }


def fitted_components(vectors: Floats) -> Components:
    """The first three principal components of vectors [S, bands]. Axes point where their largest entry is positive."""
    mean = vectors.mean(axis=0, dtype=np.float64)
    centred = vectors - mean
    variances, axes = np.linalg.eigh(centred.T @ centred / len(vectors))
    variances, axes = variances[::-1][:3].clip(0), axes[:, ::-1][:, :3]
    total = float(np.square(centred).sum() / len(vectors))
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    axes[:, variances <= 1e-12 * total] = 0  # rounding alone: as good as no variance
    missing = 3 - axes.shape[1]
    axes, variances = np.pad(axes, ((0, 0), (0, missing))), np.pad(variances, (0, missing))
    low, high = np.percentile(centred @ axes, STRETCH, axis=0)
    return Components(mean, axes, low, high, [float(v / total) if total > 0 else 0.0 for v in variances])


def coloured(vectors: Floats, components: Components) -> npt.NDArray[np.uint8]:
    """[S, bands] -> [S, 3]; 128 in a channel that has no variance."""
    values = (vectors - components.mean) @ components.axes
    span = components.high - components.low
    shares = np.where(span > 0, (values - components.low) / np.where(span > 0, span, 1.0), 128 / 255)
    return np.rint(shares.clip(0, 1) * 255).astype(np.uint8)


def _year(table: AnchorTable, year: int | None) -> int:
    if year is not None and year not in table.years:
        raise AnchorError(f"{table.path} has no year {year}; it holds {', '.join(map(str, table.years))}")
    return table.years[-1] if year is None else year


def _area_from(bounds: Sequence[float]) -> Area:
    if len(bounds) != 4:
        raise AnchorError(f"bounds {_text(bounds)}: give west,south,east,north in degrees")
    return area_from_bounds(*bounds)


def _extent(table: AnchorTable) -> Area:
    """All zones, cut to the box of the area that the table was built for: a zone is stored in whole shards."""
    figures = table.manifest.figures
    boxes = [area_from_bounds(*figure["bounds"]).geometry for figure in figures["zones"].values()]
    whole = continuous(joined(boxes))
    asked = figures.get("area")
    if asked:
        from fusar_edge.anchors.areas.geojson import polygons_from_geojson

        box = continuous(joined(polygons_from_geojson(asked, f"{table.path}: the area"))).bounds
        parts = joined([clipped(shifted(whole, turn), *box) for turn in (-360.0, 0.0, 360.0)])
        whole = whole if parts.is_empty else continuous(parts)
    return Area(whole)


def _grid(area: Area, width_px: int, out: Path) -> Grid:
    if out.suffix.lower() != ".png":
        raise AnchorError(f"{out}: the picture is a PNG; give a name that ends in .png")
    if not WIDTHS_PX[0] <= width_px <= WIDTHS_PX[1]:
        raise AnchorError(f"width is {width_px} px; give {WIDTHS_PX[0]} to {WIDTHS_PX[1]}")
    west, south, east, north = area.geometry.bounds
    lon_step = (east - west) / width_px
    lat_step = lon_step * math.cos(math.radians((south + north) / 2))
    height = max(1, round((north - south) / lat_step))
    if height * width_px > MOST_PIXELS:
        fits = int(math.sqrt(MOST_PIXELS * width_px / height))
        raise AnchorError(
            f"{width_px} px across make {height} px down for {_text(area.bounds)}, more than {MOST_PIXELS} in all;"
            f" give a width of at most {fits}"
        )
    return Grid(west, north, lon_step, (north - south) / height, width_px, height)


def _looked_up(
    table: AnchorTable, grid: Grid, year: int, progress: Callable[[int, int], None] | None
) -> tuple[list[npt.NDArray[np.int8]], npt.NDArray[np.bool_], dict[str, int]]:
    """Blocks of codes [n, bands] in the order of the pixels found, bool [pixels], and nodes by reason."""
    total = grid.width * grid.height
    kept, masks, counts = [], [], {"found": 0, "masked": 0}
    for pixels in _blocks(grid, table.spacing_m):
        anchors = table.lookup(*grid.lonlat(pixels), year)
        kept.append(anchors.codes[anchors.mask])
        masks.append(anchors.mask)
        counts = {name: counts[name] + anchors.counts[name] for name in counts}
        if progress is not None:
            progress(int(pixels[-1]) + 1, total)
    return kept, np.concatenate(masks), counts


def _blocks(grid: Grid, spacing_m: int) -> Iterator[npt.NDArray[np.int64]]:
    """Pixels in blocks of whole rows, or parts of a row, that lie on no more than CHUNKS_AT_ONCE chunks or so."""
    chunks_per_px = grid.lat_step * DEGREE_M / (CHUNK * spacing_m)
    across = grid.width * min(1.0, chunks_per_px) + 1
    if 2 * across > CHUNKS_AT_ONCE:
        size = math.floor(CHUNKS_AT_ONCE / min(1.0, chunks_per_px))
    else:
        rows = math.floor((CHUNKS_AT_ONCE / across - 1) / chunks_per_px)
        size = grid.width * max(1, min(rows, NODES_AT_ONCE // grid.width))
    total = grid.width * grid.height
    for start in range(0, total, size):
        yield np.arange(start, min(start + size, total))


def _every(stride: int, blocks: list[npt.NDArray[np.int8]]) -> npt.NDArray[np.int8]:
    """Rows 0, stride, 2 stride, ... of the blocks as if they were one array."""
    starts = np.cumsum([0, *map(len, blocks)]).tolist()
    return np.concatenate([block[-start % stride :: stride] for start, block in zip(starts, blocks, strict=False)])


def _vectors(table: AnchorTable, codes: npt.NDArray[np.int8]) -> Floats:
    """As `Anchors.vectors` gives them: dequantised codes, or coefficients of a baked table."""
    return vectors_from_codes(codes) if table.scale is None else codes * table.scale


def _labels(table: AnchorTable, year: int, area: Area) -> dict[str, str]:
    settings = table.manifest.settings
    return {
        "Title": f"{table.path.name}, {year}: principal components 1, 2, 3 as red, green, blue",
        "Copyright": f"{settings['credit']} {settings['licence']}",
        "Year": str(year),
        "Bounds": json.dumps([round(v, 6) for v in area.bounds]),
        "Spacing": f"{table.spacing_m} m",
        "Software": f"fusar-edge {table.manifest.version}",
    }


def _write_png(out: Path, rgba: npt.NDArray[np.uint8], labels: dict[str, str], force: bool) -> None:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for name, text in labels.items():
        info.add_itxt(name, text)
    with output_file(out, force=force) as path:
        Image.fromarray(rgba).save(path, format="PNG", pnginfo=info)


def _text(bounds: Sequence[float]) -> str:
    return ",".join(f"{v:g}" for v in bounds)
