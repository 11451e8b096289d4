"""The area a table is built for: a box or GeoJSON polygons in longitude and latitude, and the cells that they touch."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fusar_edge.anchors.areas.polygons import clipped, continuous, equal_area, joined, shifted, valid
from fusar_edge.anchors.sources.source import Cells
from fusar_edge.anchors.zones import LATITUDES, central_meridian, projection
from fusar_edge.errors import AnchorError

Boxes = npt.NDArray[np.float64]
"""[n, 4]: west, south, east, north in metres of one UTM zone."""

STRIP_DEG = 3.0
"""A zone's own strip, either side of its central meridian."""
REACH_DEG = 6.0
"""Its reach: AlphaEarth tiles go over the strip's edge, by less than their own 82 km up to latitude 74."""
EDGE_TOLERANCE = 0.1
"""How far, in cells, a projected edge may be from the straight line in longitude and latitude that it stands for."""
ZONES = tuple(f"utm{number:02d}{side}" for number in range(1, 61) for side in "ns")

_CURVED_M = 6.3e6  # a little less than the Earth's radius, so that bends are over-estimated


@dataclass(frozen=True)
class Area:
    """Polygons in longitude and latitude, WGS 84, whose edges are straight in these two, as GeoJSON has it.

    Made by `area_from_bounds` and `area_from_geojson`. Picklable; safe between threads.
    """

    geometry: Any
    """shapely Polygon or MultiPolygon. Longitudes are continuous: from -180..180 on eastward, to at most 540."""

    _projected: dict[tuple[str, int], Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        import shapely

        shapely.prepare(self.geometry)

    def __reduce__(self) -> tuple[type[Area], tuple[Any]]:
        return Area, (self.geometry,)

    @property
    def bounds(self) -> list[float]:
        """[west, south, east, north] in degrees, -180 to 180; west > east across the antimeridian (RFC 7946)."""
        west, south, east, north = (float(v) for v in self.geometry.bounds)
        if east - west >= 360.0:
            return [-180.0, south, 180.0, north]
        return [west, south, east if east <= 180.0 else east - 360.0, north]

    @property
    def km2(self) -> float:
        """Area on the WGS 84 ellipsoid: planar area in the cylindrical equal-area projection, which keeps parallels and
        meridians straight, so that a box is exact and a globe has no seam."""
        import shapely

        dense = shapely.segmentize(self.geometry, 0.25)
        return float(shapely.area(shapely.transform(dense, equal_area)) / 1e6)

    def intersects(self, west: float, south: float, east: float, north: float) -> bool:
        """Whether it meets a box in degrees; west > east across the antimeridian."""
        import shapely

        east = east + 360.0 if east < west else east
        start, _, end, _ = self.geometry.bounds
        turns = range(math.ceil((start - east) / 360.0), math.floor((end - west) / 360.0) + 1)
        boxes = [shapely.box(west + 360.0 * k, south, east + 360.0 * k, north) for k in turns]
        return bool(shapely.intersects(self.geometry, boxes).any()) if boxes else False

    def zones(self) -> list[str]:
        """UTM zones whose own six-degree strip, on their side of the equator, holds some of it, as 'utm10n'."""
        return [zone for zone in ZONES if self.in_strip(zone) is not None]

    def in_strip(self, zone: str) -> Area | None:
        """What lies in a zone's own strip and hemisphere, where UTM is defined; None for nothing."""
        south, north = (0.0, LATITUDES[1]) if zone.endswith("n") else (LATITUDES[0], 0.0)
        part = self._within(zone, STRIP_DEG, south, north)
        return None if part is None else Area(continuous(part))

    def cells(self, zone: str, spacing_m: int) -> Cells | None:
        """The smallest box of cells that holds what lies in the zone's reach: REACH_DEG either side of its central
        meridian, between latitudes -80 and 84 (both hemispheres: tiles go over the equator too). None for nothing."""
        projected = self._in_zone(zone, spacing_m)
        if projected is None:
            return None
        west, south, east, north = (v / spacing_m for v in projected.bounds)
        return Cells(math.floor(west), math.floor(south), math.ceil(east), math.ceil(north))

    def touches(self, zone: str, boxes: Boxes, spacing_m: int = 10) -> npt.NDArray[np.bool_]:
        """bool [n]: which boxes it touches; edges are exact to a tenth of `spacing_m`."""
        import shapely

        projected = self._in_zone(zone, spacing_m)
        if projected is None:
            return np.zeros(len(boxes), dtype=bool)
        return np.asarray(shapely.intersects(projected, shapely.box(*np.asarray(boxes, np.float64).T)))

    def mask(self, zone: str, spacing_m: int, window: Cells) -> npt.NDArray[np.bool_]:
        """bool [rows, cols], row 0 the northernmost: the cells of a window that it touches, those it only clips too.

        The window is halved both ways until each part is outside, inside or one cell, so that the work grows with the
        length of the edge and not with the number of cells.
        """
        import shapely

        inside = np.zeros((window.row1 - window.row0, window.col1 - window.col0), dtype=bool)
        projected = self._in_zone(zone, spacing_m)
        parts = np.array([[0, 0, *inside.shape]])  # row0, col0, row1, col1 within the window
        while projected is not None and len(parts):
            boxes = shapely.box(*_metres(parts, spacing_m, window).T)
            near = shapely.intersects(projected, boxes)
            parts, boxes = parts[near], boxes[near]
            whole = (parts[:, 2] - parts[:, 0]) * (parts[:, 3] - parts[:, 1]) == 1
            whole[~whole] = shapely.contains_properly(projected, boxes[~whole])
            for row0, col0, row1, col1 in parts[whole].tolist():
                inside[row0:row1, col0:col1] = True
            parts = _quarters(parts[~whole])
        return inside

    def geojson(self) -> dict[str, Any]:
        """GeoJSON geometry, cut at the antimeridian as RFC 7946 asks; `area_from_geojson` makes the same area of it."""
        import shapely

        geometry = self.geometry
        if geometry.bounds[2] > 180.0:
            here, there = (clipped(geometry, -180.0 + turn, -90.0, 180.0 + turn, 90.0) for turn in (0.0, 360.0))
            geometry = joined([here, shifted(there, -360.0)])
        document: dict[str, Any] = json.loads(shapely.to_geojson(geometry))
        return document

    def _within(self, zone: str, either_side: float, south: float, north: float) -> Any:
        """Polygons around a zone's central meridian, in longitudes that continue from it; None for nothing."""

        start, _, end, _ = self.geometry.bounds
        west, east = central_meridian(zone) - either_side, central_meridian(zone) + either_side
        turns = range(math.ceil((start - east) / 360.0), math.floor((end - west) / 360.0) + 1)
        parts = [clipped(self.geometry, west + 360.0 * k, south, east + 360.0 * k, north) for k in turns]
        part = joined([shifted(part, -360.0 * k) for part, k in zip(parts, turns, strict=True)])
        return None if part.is_empty else part

    def _in_zone(self, zone: str, spacing_m: int) -> Any:
        """What lies in the zone's reach, projected to metres and prepared; None for nothing. Kept for the next call."""
        import shapely

        key = (zone, spacing_m)
        if key not in self._projected:
            part = self._within(zone, REACH_DEG, *LATITUDES)
            if part is not None:
                dense = shapely.segmentize(part, _longest_edge_deg(part, spacing_m * EDGE_TOLERANCE))
                part = valid(shapely.transform(dense, projection(zone).transform, interleaved=False))
                shapely.prepare(part)
            self._projected[key] = part
        return self._projected[key]


def area_from_bounds(west: float, south: float, east: float, north: float) -> Area:
    """A box in degrees, WGS 84; west > east goes across the antimeridian (RFC 7946), west < -180 or east > 180 too.

    Raises AnchorError for a box that is empty or out of range.
    """
    import shapely

    given = f"bounds {west:g},{south:g},{east:g},{north:g}"
    if not all(map(math.isfinite, (west, south, east, north))) or max(abs(west), abs(east)) > 360:
        raise AnchorError(f"{given}: give west,south,east,north in degrees, longitudes -180 to 180")
    if not -90 <= south < north <= 90:
        raise AnchorError(f"{given}: south must be less than north, both within -90 to 90; the order is W,S,E,N")
    east = east + 360.0 if east < west else east
    if not 0 < east - west <= 360:
        raise AnchorError(f"{given}: it is {east - west:g} degrees wide; give more than 0 and at most 360")
    return _area(shapely.box(west, south, east, north), given)


def area_from_geojson(path: Path) -> Area:
    """Read the polygons of a GeoJSON file (RFC 7946), features and collections of them included, holes respected.

    Rings that cross themselves are repaired with shapely.make_valid. Raises AnchorError naming the file.
    """
    from fusar_edge.anchors.areas.geojson import polygons_from_geojson

    try:
        document = json.loads(Path(path).read_bytes())
    except OSError as problem:
        raise AnchorError(f"{path}: {problem.strerror}; give a GeoJSON file of polygons") from None
    except (ValueError, RecursionError) as problem:
        raise AnchorError(f"{path} is not JSON ({problem}); give a GeoJSON file of polygons") from None
    return _area(joined(polygons_from_geojson(document, str(path))), str(path))


def _area(geometry: Any, given: str) -> Area:
    if geometry.area == 0:
        raise AnchorError(f"{given}: the area is empty; give polygons that enclose something")
    _, south, _, north = geometry.bounds
    if south >= LATITUDES[1] or north <= LATITUDES[0]:
        raise AnchorError(
            f"{given}: latitudes {south:g} to {north:g} have no UTM zone, so AlphaEarth has no tile there;"
            f" give an area within {LATITUDES[0]:g} to {LATITUDES[1]:g}"
        )
    return Area(continuous(geometry))


def _longest_edge_deg(geometry: Any, tolerance_m: float) -> float:
    """Length of an edge in degrees whose projection bends by less than the tolerance.

    A chord of length l of a curve with curvature k is l^2 k / 8 away from it. Parallels bend most, by tan(latitude)
    over the Earth's radius; slanted lines and the convergence at the reach's edge add a part (tested against pyproj).
    """
    _, south, _, north = geometry.bounds
    bend = (1.5 * math.tan(math.radians(max(abs(south), abs(north)))) + 0.3) / _CURVED_M
    return math.sqrt(8.0 * tolerance_m / bend) / 111_700.0


def _metres(parts: npt.NDArray[np.int64], spacing_m: int, window: Cells) -> Boxes:
    """Boxes of some parts of a window, [n, 4] as row0, col0, row1, col1 from its north-west corner."""
    row0, col0, row1, col1 = parts.T
    sides = (window.col0 + col0, window.row1 - row1, window.col0 + col1, window.row1 - row0)
    return np.stack(sides, axis=1).astype(np.float64) * spacing_m


def _quarters(parts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Both sides halved; a side of one cell gives an empty half, which is left out."""
    row0, col0, row1, col1 = parts.T
    row, col = (row0 + row1 + 1) // 2, (col0 + col1 + 1) // 2
    split = [(row0, col0, row, col), (row0, col, row, col1), (row, col0, row1, col), (row, col, row1, col1)]
    quarters = np.concatenate([np.stack(sides, axis=1) for sides in split])
    return quarters[(quarters[:, 0] < quarters[:, 2]) & (quarters[:, 1] < quarters[:, 3])]
