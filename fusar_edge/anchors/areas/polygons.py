"""Cutting, moving and joining polygons in longitude and latitude; only what encloses something is kept."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

_AXIS_M, _ECCENTRICITY = 6378137.0, 0.0818191908426215  # of WGS 84


def continuous(geometry: Any) -> Any:
    """The same places with longitudes that run on from the east end of the widest gap: the narrowest bounds."""
    import shapely

    polygons = shapely.get_parts(geometry)
    spans = sorted((b[0] - _turns(b[0]), b[2] - b[0]) for b in shapely.bounds(polygons).tolist())
    west, gap = -180.0, 0.0
    end = max(start + width for start, width in spans) - 360.0
    for start, width in spans:
        if start - end > gap:
            west, gap = start, start - end
        end = max(end, start + width)
    placed = []
    for polygon in polygons:
        first = polygon.bounds[0]
        shift = math.ceil((west - first) / 360.0 - 1e-9) * 360.0
        for turn in (shift, shift - 360.0, shift - 720.0):  # one, unless it goes round the Earth or over the cut
            placed.append(clipped(shifted(polygon, turn), west, -90.0, west + 360.0, 90.0))
    return joined(placed)


def _turns(lon: float) -> float:
    """Degrees of whole turns that `lon` is away from [-180, 180)."""
    return math.floor((lon + 180.0) / 360.0) * 360.0


def joined(geometries: list[Any]) -> Any:
    """Union of the polygons in some geometries; points and lines, which clipping leaves behind, are dropped."""
    import shapely

    parts = shapely.get_parts(shapely.get_parts(geometries))
    polygons = parts[shapely.area(parts) > 0]
    return polygons[0] if len(polygons) == 1 else shapely.union_all(polygons)


def clipped(geometry: Any, west: float, south: float, east: float, north: float) -> Any:
    import shapely

    box = shapely.box(west, south, east, north)
    return geometry if shapely.covers(box, geometry) else shapely.intersection(geometry, box)


def shifted(geometry: Any, degrees: float) -> Any:
    import shapely

    return geometry if degrees == 0 else shapely.transform(geometry, lambda points: points + np.array([degrees, 0.0]))


def valid(geometry: Any) -> Any:
    import shapely

    return geometry if shapely.is_valid(geometry) else joined([shapely.make_valid(geometry)])


def equal_area(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Degrees [n, 2] -> metres, Lambert's cylindrical equal-area projection (Snyder 1987, equations 10-14 and 3-12)."""
    sine, e = np.sin(np.radians(points[:, 1])), _ECCENTRICITY
    q = (1 - e * e) * (sine / (1 - (e * sine) ** 2) + np.arctanh(e * sine) / e)
    return np.stack([_AXIS_M * np.radians(points[:, 0]), _AXIS_M * q / 2], axis=1)
