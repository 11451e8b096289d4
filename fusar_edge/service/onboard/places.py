"""Where records lie: centres and pixel axes from the GeoJSON geometries of answers and boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Json = dict[str, Any]
Array = npt.NDArray[np.float64]
Axes = tuple[float, float, float, float]

METRES_PER_DEGREE = 111_320.0


def centre(geometry: Json, lon0: float) -> tuple[float, float]:
    """Longitude within 180 degrees of `lon0`, latitude."""
    points = _points(geometry)
    lon, lat = (points.min(axis=0) + points.max(axis=0)) / 2
    return float((lon - lon0 + 180.0) % 360.0 - 180.0 + lon0), float(lat)


def scene_centre(facts: Json) -> tuple[float, float]:
    west, south, east, north = facts["bbox"]
    return (west + east + (360.0 if west > east else 0.0)) / 2, (south + north) / 2


def pixel_axes(features: Sequence[Json]) -> Axes:
    """SceneHead.axes, from the first footprint or box with four corners: they begin at one end of a row and go along
    the column next (Geolocation.footprint, box_ring). Where all are bent: the first one's extent, north up."""
    windows = [(f["geometry"], f["properties"]["window_px"]) for f in features]
    shapes = [(geometry, window["width"], window["height"]) for geometry, window in windows]
    for value in _boxes(features):
        x1, y1, x2, y2 = value["box_px"]
        shapes.append((value["geometry"], x2 - x1, y2 - y1))
    for geometry, width, height in shapes:
        points = _metres(geometry)
        if len(points) == 4:
            row = (points[3] - points[0] + points[2] - points[1]) / 2 / width
            column = (points[1] - points[0] + points[2] - points[3]) / 2 / height
            return (float(row[0]), float(row[1]), float(column[0]), float(column[1]))
    for geometry, width, height in shapes[:1]:
        east, north = np.ptp(_metres(geometry), axis=0)
        return (float(east) / width, 0.0, 0.0, -float(north) / height)
    return (1.0, 0.0, 0.0, -1.0)


def _boxes(features: Sequence[Json]) -> list[Json]:
    """Boxes with their geometry, of the tile's parsed `detect` answers."""
    answers = [f["properties"] for f in features if f["properties"]["task"] == "detect"]
    return [value for own in answers if own["parse_status"] == "parsed" for value in own["value"]]


def _points(geometry: Json) -> Array:
    """[n, 2] lon, lat of all corners, without a jump at 180 degrees; a ring's last point left out."""
    polygons = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
    points = np.array([point for polygon in polygons for point in polygon[0][:-1]], np.float64)
    points[:, 0] = (points[:, 0] - points[0, 0] + 180.0) % 360.0 - 180.0 + points[0, 0]
    return points


def _metres(geometry: Json) -> Array:
    """`_points`, east and north of 0, 0 at the geometry's own latitude."""
    points = _points(geometry)
    return points * METRES_PER_DEGREE * np.array([np.cos(np.deg2rad(points[:, 1].mean())), 1.0])
