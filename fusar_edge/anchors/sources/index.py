"""The data set's own index, `aef_index.parquet`: which tiles cover an area, and which years there are."""

from __future__ import annotations

import importlib.util
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fusar_edge.anchors.sources.locations import fetch, is_remote, name_of, shown
from fusar_edge.anchors.zones import zone_from_epsg
from fusar_edge.errors import AnchorError, MissingExtraError

if TYPE_CHECKING:
    from fusar_edge.anchors.areas.area import Area

BOX_DEGREES = ("wgs84_west", "wgs84_south", "wgs84_east", "wgs84_north")
BOX_METRES = ("utm_west", "utm_south", "utm_east", "utm_north")
COLUMNS = ("path", "year", "crs", *BOX_METRES, *BOX_DEGREES)
"""Those read; the others (geometry, utm_zone, fid) say the same again."""


class IndexedTile(NamedTuple):
    """One file of the data set."""

    location: str
    """As the index has it (s3://, gs:// or https://), on the mirror, or a path beside a local index."""
    year: int
    zone: str
    """`utm17n`"""
    bounds: tuple[int, int, int, int]
    """West, south, east, north of the whole tile, metres in the zone."""


@dataclass(frozen=True)
class Index:
    """The index in memory: about 60 MB for 300,000 tiles."""

    location: str
    table: Any
    """pyarrow.Table of COLUMNS."""

    @property
    def years(self) -> list[int]:
        return sorted(int(year) for year in self.table["year"].unique().to_pylist() if year is not None)

    def tiles(self, area: Area | None, years: Sequence[int], *, mirror: str | None = None) -> list[IndexedTile]:
        """Tiles of the years whose valid part meets the area (None: everywhere), sorted by year, zone and place.

        `mirror`: folder or address prefix that takes the place of everything up to `/annual/` in each path, so that
        .../annual/2024/17N/x.tiff is read as MIRROR/2024/17N/x.tiff. AnchorError for a year that the index lacks, an
        area without tiles, and an entry that cannot be used.
        """
        import pyarrow.compute as pc

        missing = sorted(set(years) - set(self.years))
        if missing or not years:
            wanted = ", ".join(map(str, missing)) or "none given"
            raise AnchorError(f"{shown(self.location)}: no tiles of the year {wanted}; there are {self.years}")
        rows = self.table.filter(pc.field("year").isin([int(year) for year in years]))
        if area is not None:
            rows = rows.take(_touching(rows, area))
        if not rows.num_rows:
            raise AnchorError(
                f"{shown(self.location)}: no tile of {sorted(set(years))} meets the area; the data set covers land and "
                "shallow water: check longitude and latitude, and their order"
            )
        found = {(row["path"], row["year"]): row for row in rows.select(COLUMNS[:7]).to_pylist()}
        tiles = [self._tile(row, mirror) for row in found.values()]
        return sorted(tiles, key=lambda tile: (tile.year, tile.zone, tile.bounds, tile.location))

    def _tile(self, row: dict[str, Any], mirror: str | None) -> IndexedTile:
        code = re.fullmatch(r"EPSG:(\d+)", str(row["crs"]).strip(), re.IGNORECASE)
        zone = zone_from_epsg(int(code[1])) if code else None
        box = [row[name] for name in BOX_METRES]
        if zone is None or any(edge is None or edge != edge for edge in box):
            raise AnchorError(
                f"{shown(self.location)}: tile {row['path']} has the CRS {row['crs']!r} and the bounds {box}; they "
                "must be WGS 84 / UTM (EPSG:326xx or 327xx) and metres: download the index again"
            )
        west, south, east, north = (round(edge) for edge in box)
        return IndexedTile(self._location(str(row["path"]), mirror), int(row["year"]), zone, (west, south, east, north))

    def _location(self, path: str, mirror: str | None) -> str:
        relative = not is_remote(path) and not path.startswith("/") and "://" not in path
        if ".." in path.split("/") or not (relative or is_remote(path) or not is_remote(self.location)):
            raise AnchorError(
                f"{shown(self.location)}: the path {path!r} is neither an address nor below the index; download the "
                "index again"
            )
        if mirror is not None:
            _, annual, rest = f"/{path}".rpartition("/annual/")
            if not annual and not relative:
                raise AnchorError(
                    f"{shown(self.location)}: the path {path!r} has no /annual/ that a mirror can replace"
                )
            return f"{mirror.rstrip('/')}/{rest if annual else path}"
        return shown(self.location)[: -len(name_of(self.location))] + path if relative else path


def read_index(location: str) -> Index:
    """Read `aef_index.parquet` from a path or an http(s) address (downloaded each time: tens of MB; keep a copy).

    AnchorError for what is no Parquet file or lacks a column (named); MissingExtraError without pyarrow.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise MissingExtraError(
            f"{shown(location)}: reading the index needs pyarrow, which is not installed: "
            "pip install 'fusar-edge[tables]'"
        )
    if not is_remote(location):
        return Index(location, _read_columns(Path(location), location))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "index.parquet"
        fetch(location, copy)
        return Index(location, _read_columns(copy, location))


def _read_columns(path: Path, location: str) -> Any:
    import pyarrow
    from pyarrow import parquet

    if not path.is_file():
        raise AnchorError(f"{location}: no such file; give aef_index.parquet, by path or https:// address")
    try:
        with parquet.ParquetFile(path) as file:
            missing = [name for name in COLUMNS if name not in file.schema_arrow.names]
            if missing:
                raise AnchorError(
                    f"{shown(location)}: no column {', '.join(missing)}; an AlphaEarth index has {', '.join(COLUMNS)}"
                )
            return file.read(columns=list(COLUMNS), use_threads=False)
    except (pyarrow.ArrowException, OSError) as problem:
        raise AnchorError(
            f"{shown(location)}: not a Parquet file ({problem}); give aef_index.parquet as published"
        ) from None


def _touching(rows: Any, area: Area) -> npt.NDArray[np.int64]:
    """Rows whose box in degrees meets the area: all against its bounds first, then what is left, exactly."""
    west, south, east, north = (_numbers(rows[name]) for name in BOX_DEGREES)
    low_lon, low_lat, high_lon, high_lat = area.bounds
    width, area_width = (east - west) % 360.0, (high_lon - low_lon) % 360.0
    width[(width == 0) & (east != west)] = 360.0
    area_width = 360.0 if area_width == 0 and high_lon != low_lon else area_width
    meet = ((low_lon - west) % 360.0 <= width) | ((west - low_lon) % 360.0 <= area_width)
    near = np.flatnonzero(meet & (south <= high_lat) & (north >= low_lat))  # False for NaN: a tile without a valid part
    boxes = zip(near, west[near], south[near], east[near], north[near], strict=True)
    return np.array([row for row, *box in boxes if area.intersects(*map(float, box))], dtype=np.int64)


def _numbers(column: Any) -> npt.NDArray[np.float64]:
    return np.asarray(column.to_numpy(), dtype=np.float64)
