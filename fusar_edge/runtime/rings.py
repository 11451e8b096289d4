"""Rings in lon/lat -> GeoJSON geometry (RFC 7946): counter-clockwise, cut at the antimeridian."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

DECIMALS = 7
"""About 1 cm."""

Ring = npt.NDArray[np.float64]


def geometry_from_ring(ring: list[list[float]]) -> dict[str, Any]:
    """Polygon of a closed ring [[lon, lat], ...] without jumps; MultiPolygon where it crosses 180 degrees (3.1.9)."""
    points = np.asarray(ring, np.float64)[:-1]
    first, last = (int(np.floor((lon + 180.0) / 360.0)) for lon in (points[:, 0].min(), points[:, 0].max()))
    parts = []
    for turn in range(first, last + 1):
        inside = _clipped(_clipped(points - (360.0 * turn, 0.0), -180.0, 1.0), 180.0, -1.0)
        if len(inside) >= 3 and abs(_twice_area(inside)) > 0:
            parts.append([_closed(inside)])
    if len(parts) == 1:
        return {"type": "Polygon", "coordinates": parts[0]}
    return {"type": "MultiPolygon", "coordinates": parts}


def _clipped(points: Ring, lon: float, side: float) -> Ring:
    """The part of a ring (not closed) where side * (longitude - lon) >= 0 (Sutherland-Hodgman)."""
    kept: list[Ring] = []
    for a, b in zip(points, np.roll(points, -1, axis=0), strict=True):
        a_in, b_in = side * (a[0] - lon) >= 0, side * (b[0] - lon) >= 0
        if a_in:
            kept.append(a)
        if a_in != b_in:
            t = (lon - a[0]) / (b[0] - a[0])
            kept.append(np.array([lon, a[1] + t * (b[1] - a[1])]))
    return np.array(kept).reshape(-1, 2)


def _closed(points: Ring) -> list[list[float]]:
    ordered = (points if _twice_area(points) > 0 else points[::-1]).round(DECIMALS)
    return [[float(lon), float(lat)] for lon, lat in (*ordered, ordered[0])]


def _twice_area(points: Ring) -> float:
    """Twice the signed area; positive for counter-clockwise."""
    lon, lat = points.T
    return float(np.sum(lon * np.roll(lat, -1) - np.roll(lon, -1) * lat))
