"""UTM zones: names, EPSG codes and projection of longitude and latitude."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

LATITUDES = (-80.0, 84.0)
"""Where UTM is defined, degrees."""


def zone_from_epsg(epsg: int | None) -> str | None:
    """`utm16n` for EPSG:32616, `utm33s` for EPSG:32733; None for what is not WGS 84 / UTM."""
    if epsg is not None and 32601 <= epsg <= 32660:
        return f"utm{epsg - 32600:02d}n"
    if epsg is not None and 32701 <= epsg <= 32760:
        return f"utm{epsg - 32700:02d}s"
    return None


def epsg_from_zone(zone: str) -> int:
    """EPSG code of `utm16n`."""
    return (32600 if zone.endswith("n") else 32700) + int(zone[3:5])


def central_meridian(zone: str) -> float:
    """Degrees east."""
    return int(zone[3:5]) * 6.0 - 183.0


def zones_from_lonlat(lon_deg: npt.NDArray[np.float64], lat_deg: npt.NDArray[np.float64]) -> npt.NDArray[np.str_]:
    """The regular six-degree zone of each point (without the exceptions of Norway and Svalbard)."""
    number = (np.floor((lon_deg + 180.0) / 6.0).astype(np.int64) % 60) + 1
    return np.array([f"utm{n:02d}{'n' if lat >= 0 else 's'}" for n, lat in zip(number, lat_deg, strict=True)])


@functools.cache
def projection(zone: str) -> Any:
    """pyproj.Transformer from (lon, lat) in degrees, WGS 84, to (easting, northing) in metres; safe between threads."""
    import pyproj

    return pyproj.Transformer.from_crs(4326, epsg_from_zone(zone), always_xy=True)


@functools.lru_cache(maxsize=64)
def zone_of_crs(crs: Any) -> str | None:
    """`utm16n` where a CRS (whatever pyproj reads) is that of WGS 84 / UTM, else None."""
    import pyproj

    return zone_from_epsg(pyproj.CRS.from_user_input(crs).to_epsg())


@functools.lru_cache(maxsize=64)
def lonlat_from_crs(crs: Any) -> Any:
    """pyproj.Transformer from a CRS (whatever pyproj reads) to (lon, lat) in degrees, WGS 84."""
    import pyproj

    return pyproj.Transformer.from_crs(pyproj.CRS.from_user_input(crs), 4326, always_xy=True)


def lonlat_bounds(zone: str, west: float, south: float, east: float, north: float) -> list[float]:
    """[lon_min, lat_min, lon_max, lat_max] that encloses a box in metres; lon_min > lon_max across the antimeridian."""
    return list(projection(zone).transform_bounds(west, south, east, north, direction="INVERSE"))
