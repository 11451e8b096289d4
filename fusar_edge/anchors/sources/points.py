"""Tables of points: Earth Engine's CSV exports, and the official per-image `.npy` files, which carry places."""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fusar_edge.anchors.codes import (
    BAND_NAMES,
    BANDS,
    LENGTH_TOLERANCE,
    NODATA,
    codes_from_sums,
    codes_from_vectors,
    squares_from_codes,
    unit_length,
)
from fusar_edge.anchors.per_image import read_placed_anchors
from fusar_edge.anchors.sources.source import Cells, Layer, Sums
from fusar_edge.anchors.zones import LATITUDES, projection, zones_from_lonlat
from fusar_edge.errors import AnchorError

POINTS_PER_BATCH = 4096
_INDEX_YEAR = re.compile(r"(20\d\d)_")
"""How `system:index` begins where points were sampled from images that are named by their year."""


@dataclass(frozen=True)
class PointSource:
    """Points read from a table, by zone and year."""

    location: str
    points: dict[Layer, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int8]]]
    """Cell column [n], cell row [n] (northward) and codes [n, 64]."""

    @property
    def cell_is_pixel(self) -> bool:
        return False  # any number of points may lie in a cell

    def layers(self) -> dict[Layer, Cells]:
        return {
            layer: Cells(int(col.min()), int(row.min()), int(col.max()) + 1, int(row.max()) + 1)
            for layer, (col, row, _) in self.points.items()
        }

    def part(self, layer: Layer, window: Cells) -> PointSource | None:
        if layer not in self.points:
            return None
        col, row, codes = self.points[layer]
        here = (col >= window.col0) & (col < window.col1) & (row >= window.row0) & (row < window.row1)
        return PointSource(self.location, {layer: (col[here], row[here], codes[here])}) if here.any() else None

    def add_to(self, sums: Sums, layer: Layer, window: Cells) -> None:
        part = self.part(layer, window)
        if part is not None:
            col, row, codes = part.points[layer]
            place = (window.row1 - 1 - row, col - window.col0)
            np.add.at(sums.squares, place, squares_from_codes(codes))
            np.add.at(sums.counts, place, 1)

    def copy_to(self, codes: npt.NDArray[np.int8], layer: Layer, window: Cells) -> None:
        sums = Sums(np.zeros(codes.shape, np.int32), np.zeros(codes.shape[:2], np.int32))
        self.add_to(sums, layer, window)
        means = codes_from_sums(*sums)
        np.copyto(codes, means, where=means != NODATA)


class _Batch(NamedTuple):
    """Some rows of a table."""

    lines: npt.NDArray[np.int64]
    """[n], line numbers of a CSV, from 1; rows of an array, from 0."""
    values: npt.NDArray[np.float64]
    """[n, 66]: A00..A63, latitude, longitude."""
    years: npt.NDArray[np.int64]
    """[n]"""


def read_points(location: Path | str, *, year: int | None, spacing_m: int) -> PointSource:
    """Read a local table of points.

    `.csv`, as Earth Engine exports it: columns A00..A63; latitude and longitude, or `.geo` with a GeoJSON Point; the
    year in a column `year`, else in a `system:index` that begins with it (2024_...), else `year`. With a year in the
    table and `year` given, rows of other years are left out. Other columns are ignored.
    `.npy`, the official per-image files with places (see per_image): they do not say their year, so `year` must be
    given; vectors of zeros, their form of "no data", are left out.

    Vectors are quantised to AlphaEarth's codes, which is exact for values that Earth Engine exported. A point belongs
    to the regular six-degree zone of its longitude. AnchorError names the file and the line.
    """
    path = Path(location)
    suffix = path.suffix.lower()
    if suffix == ".npz":
        raise AnchorError(
            f"{path}: a per-image .npz holds no coordinates (its positions are within the image); give the .npy it was "
            "made from, or an AlphaEarth GeoTIFF or CSV of the place"
        )
    parts: dict[Layer, list[tuple[npt.NDArray[Any], ...]]] = {}
    for batch in _npy_batches(path, year) if suffix == ".npy" else _csv_batches(path, year):
        _check_points(path, batch, "row" if suffix == ".npy" else "line")
        for layer, *columns in _by_layer(batch, spacing_m):
            parts.setdefault(layer, []).append(tuple(columns))
    if not parts:
        wanted = "" if year is None else f" of the year {year}"
        raise AnchorError(f"{path}: no points{wanted}; give a table with rows, or another --year")
    merged = {layer: tuple(np.concatenate(part) for part in zip(*some, strict=True)) for layer, some in parts.items()}
    return PointSource(str(location), merged)  # type: ignore[arg-type]  # zip(*) loses the tuple's length


def _by_layer(batch: _Batch, spacing_m: int) -> Iterator[tuple[Any, ...]]:
    """(layer, cell columns, cell rows, codes) of each zone and year in a batch."""
    lat, lon = batch.values[:, BANDS], batch.values[:, BANDS + 1]
    zones, years = zones_from_lonlat(lon, lat), batch.years
    codes = codes_from_vectors(batch.values[:, :BANDS])
    for zone, year in sorted(set(zip(zones.tolist(), years.tolist(), strict=True))):
        here = (zones == zone) & (years == year)
        x, y = projection(zone).transform(lon[here], lat[here])
        cells = (np.floor(v / spacing_m).astype(np.int64) for v in (x, y))
        yield Layer(zone, year), *cells, codes[here]


def _npy_batches(path: Path, year: int | None) -> Iterator[_Batch]:
    if year is None:
        raise AnchorError(f"{path}: a per-image file does not say its year; give --year")
    lon, lat, features = read_placed_anchors(path)
    values = np.column_stack([features, lat, lon]).astype(np.float64)
    rows = np.flatnonzero(features.any(axis=1))
    if len(rows):
        yield _Batch(rows, values[rows], np.full(len(rows), year))


def _csv_batches(path: Path, year: int | None) -> Iterator[_Batch]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header, first = next(reader, []), next(reader, [])
            numbers_of, year_of = _number_reader(path, header), _year_reader(path, header, first, year)
            rows: list[tuple[int, list[float], int]] = []
            for row in itertools.chain([first], reader):
                if not row:
                    continue
                try:
                    at, numbers = year_of(row), numbers_of(row)
                except (ValueError, IndexError, OverflowError) as problem:
                    reason = "too few columns" if isinstance(problem, IndexError) else str(problem)
                    raise AnchorError(f"{path}, line {reader.line_num}: {reason}; give the table as exported") from None
                if year is None or at == year:
                    rows.append((reader.line_num, numbers, at))
                if len(rows) == POINTS_PER_BATCH:
                    yield _batch(rows)
                    rows = []
            if rows:
                yield _batch(rows)
    except (UnicodeDecodeError, csv.Error) as problem:
        raise AnchorError(f"{path}: not a CSV text file ({problem})") from None


def _batch(rows: list[tuple[int, list[float], int]]) -> _Batch:
    lines, values, years = zip(*rows, strict=True)
    return _Batch(np.array(lines), np.array(values), np.array(years))


def _number_reader(path: Path, header: list[str]) -> Callable[[Sequence[str]], list[float]]:
    """Reads A00..A63, latitude, longitude of a row; ValueError for what is no number, IndexError for a short row."""
    placed = {"latitude", "longitude"} <= set(header) or ".geo" not in header
    needed = (*BAND_NAMES, "latitude", "longitude") if placed else BAND_NAMES
    missing = [name for name in needed if name not in header]
    if missing:
        raise AnchorError(
            f"{path}: no column {', '.join(missing[:4])}; needed are A00..A63, and latitude and longitude or .geo"
        )
    columns = [header.index(name) for name in needed]
    if placed:
        return lambda row: [float(row[column]) for column in columns]
    geo = header.index(".geo")
    return lambda row: [*(float(row[column]) for column in columns), *_lat_lon_from_geo(row[geo])]


def _lat_lon_from_geo(text: str) -> tuple[float, float]:
    """ValueError for what is no GeoJSON Point."""
    try:
        point = json.loads(text)
        lon, lat = point["coordinates"][:2]
        if point["type"] == "Point":
            return float(lat), float(lon)
    except (ValueError, TypeError, LookupError, RecursionError):
        pass
    raise ValueError(f".geo is {text[:40]!r} and no GeoJSON Point: sample with geometries=True")


def _year_reader(path: Path, header: list[str], first: list[str], year: int | None) -> Callable[[Sequence[str]], int]:
    """Reads the year of a row. `system:index` counts only where the first row's begins with a year."""
    if "year" in header:
        column = header.index("year")
        return lambda row: int(float(row[column]))
    if _INDEX_YEAR.match(dict(zip(header, first, strict=False)).get("system:index", "")):
        column = header.index("system:index")
        return lambda row: _year_from_index(row[column])
    if year is None:
        raise AnchorError(f"{path}: no column year, and no system:index that begins with one; give --year")
    return lambda row: year


def _year_from_index(text: str) -> int:
    found = _INDEX_YEAR.match(text)
    if found is None:
        raise ValueError(f"system:index is {text[:20]!r} and does not begin with a year, as the first row's does")
    return int(found[1])


def _check_points(path: Path, batch: _Batch, unit: str) -> None:
    values = batch.values
    vectors, lat, lon = values[:, :BANDS], values[:, BANDS], values[:, BANDS + 1]
    checks = (
        (np.isfinite(values).all(axis=1), "holds NaN or infinity; leave masked points out"),
        ((lat >= LATITUDES[0]) & (lat <= LATITUDES[1]), f"latitude is out of range; allowed are {LATITUDES} degrees"),
        ((lon >= -180) & (lon <= 180), "longitude is out of range; allowed are -180 to 180 degrees"),
        (unit_length(vectors), f"A00..A63 is not of length 1 within {LENGTH_TOLERANCE}; give the values as exported"),
    )
    for good, reason in checks:
        if not good.all():
            raise AnchorError(f"{path}, {unit} {batch.lines[int(np.argmin(good))]}: {reason}")
