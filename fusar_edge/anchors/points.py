"""Tables of points, as Earth Engine exports samples of the data set: A00..A63, latitude, longitude, year."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fusar_edge.anchors.codes import (
    BAND_NAMES,
    BANDS,
    LENGTH_TOLERANCE,
    codes_from_vectors,
    squares_from_codes,
    unit_length,
)
from fusar_edge.anchors.sources import Cells, Layer, Sums
from fusar_edge.anchors.zones import LATITUDES, projection, zones_from_lonlat
from fusar_edge.errors import AnchorError

POINTS_PER_BATCH = 4096


@dataclass(frozen=True)
class PointSource:
    """Points read from a table, by zone and year."""

    path: Path
    points: dict[Layer, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int8]]]
    """Cell column [n], cell row [n] (northward) and codes [n, 64]."""

    def layers(self) -> dict[Layer, Cells]:
        return {
            layer: Cells(int(col.min()), int(row.min()), int(col.max()) + 1, int(row.max()) + 1)
            for layer, (col, row, _) in self.points.items()
        }

    def add_to(self, sums: Sums, layer: Layer, window: Cells) -> None:
        if layer not in self.points:
            return
        col, row, codes = self.points[layer]
        here = (col >= window.col0) & (col < window.col1) & (row >= window.row0) & (row < window.row1)
        place = (window.row1 - 1 - row[here], col[here] - window.col0)
        np.add.at(sums.squares, place, squares_from_codes(codes[here]))
        np.add.at(sums.counts, place, 1)


def read_points(path: Path, *, year: int | None, spacing_m: int) -> PointSource:
    """Read a CSV with the columns A00..A63, latitude, longitude and (unless `year` is given) year; others are ignored.

    With both, rows of other years are left out. Vectors are quantised to AlphaEarth's codes, which is exact for values
    that Earth Engine exported. AnchorError names the file and the line.
    """
    batches: dict[Layer, list[tuple[npt.NDArray[Any], ...]]] = {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            for lines, values, years in _csv_batches(file, path, year):
                _check_points(path, lines, values)
                lat, lon = values[:, BANDS], values[:, BANDS + 1]
                zones = zones_from_lonlat(lon, lat)
                codes = codes_from_vectors(values[:, :BANDS])
                for layer in sorted(set(zip(zones.tolist(), years.tolist(), strict=True))):
                    here = (zones == layer[0]) & (years == layer[1])
                    x, y = projection(layer[0]).transform(lon[here], lat[here])
                    cells = (np.floor(v / spacing_m).astype(np.int64) for v in (x, y))
                    batches.setdefault(Layer(*layer), []).append((*cells, codes[here]))
    except (UnicodeDecodeError, csv.Error) as problem:
        raise AnchorError(f"{path}: not a CSV text file ({problem})") from None
    if not batches:
        wanted = "" if year is None else f" of the year {year}"
        raise AnchorError(f"{path}: no points{wanted}; give a table with rows, or another --year")
    merged = {
        layer: tuple(np.concatenate(part) for part in zip(*parts, strict=True)) for layer, parts in batches.items()
    }
    return PointSource(path, merged)  # type: ignore[arg-type]  # zip(*) loses the tuple's length


def _csv_batches(
    file: Any, path: Path, year: int | None
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.int64]]]:
    """Yield line numbers [n], values [n, 66] (A00..A63, latitude, longitude) and years [n]."""
    reader = csv.reader(file)
    header = next(reader, [])
    missing = [name for name in (*BAND_NAMES, "latitude", "longitude") if name not in header]
    if missing:
        raise AnchorError(f"{path}: no column {', '.join(missing[:4])}; needed are A00..A63, latitude and longitude")
    columns = [header.index(name) for name in (*BAND_NAMES, "latitude", "longitude")]
    year_column = header.index("year") if "year" in header else None
    if year_column is None and year is None:
        raise AnchorError(f"{path}: no column year; give --year")
    lines: list[int] = []
    values: list[list[float]] = []
    years: list[int] = []
    for row in reader:
        if not row:
            continue
        try:
            at = year if year_column is None else int(float(row[year_column]))
            numbers = [float(row[column]) for column in columns]
        except (ValueError, IndexError, OverflowError) as problem:
            reason = "too few columns" if isinstance(problem, IndexError) else str(problem)
            raise AnchorError(f"{path}, line {reader.line_num}: {reason}; every value must be a number") from None
        if year is None or at == year:
            lines.append(reader.line_num)
            values.append(numbers)
            years.append(int(at))  # type: ignore[arg-type]  # None was refused above
        if len(lines) == POINTS_PER_BATCH:
            yield np.array(lines), np.array(values), np.array(years)
            lines, values, years = [], [], []
    if lines:
        yield np.array(lines), np.array(values), np.array(years)


def _check_points(path: Path, lines: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> None:
    vectors, lat, lon = values[:, :BANDS], values[:, BANDS], values[:, BANDS + 1]
    checks = (
        (np.isfinite(values).all(axis=1), "holds NaN or infinity; leave masked points out"),
        ((lat >= LATITUDES[0]) & (lat <= LATITUDES[1]), f"latitude is out of range; allowed are {LATITUDES} degrees"),
        ((lon >= -180) & (lon <= 180), "longitude is out of range; allowed are -180 to 180 degrees"),
        (unit_length(vectors), f"A00..A63 is not of length 1 within {LENGTH_TOLERANCE}; give the values as exported"),
    )
    for good, reason in checks:
        if not good.all():
            raise AnchorError(f"{path}, line {lines[int(np.argmin(good))]}: {reason}")
