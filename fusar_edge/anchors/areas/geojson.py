"""Reads the polygons of a GeoJSON document and says what is wrong with those that cannot be used."""

from __future__ import annotations

import itertools
import math
from typing import Any

from fusar_edge.errors import AnchorError

REMEDY = "give Polygon or MultiPolygon geometries, or features and collections of them"
_WGS84 = {"CRS84", "OGC:CRS84", "EPSG:4326", "WGS84"}


def polygons_from_geojson(document: Any, given: str) -> list[Any]:
    """shapely polygons, valid and two-dimensional. `given` names the document in AnchorErrors."""
    found = _polygons(document, given)
    if not found:
        raise AnchorError(f"{given} holds no polygon; {REMEDY}")
    return found


def _polygons(node: Any, given: str) -> list[Any]:
    if not isinstance(node, dict):
        raise AnchorError(f"{given} is not GeoJSON: {_short(node)} stands where an object should; {REMEDY}")
    _check_crs(node, given)
    kind = node.get("type")
    if kind == "FeatureCollection":
        return [p for feature in _list(node, "features", given) for p in _polygons(feature, given)]
    if kind == "GeometryCollection":
        return [p for member in _list(node, "geometries", given) for p in _polygons(member, given)]
    if kind == "Feature":  # RFC 7946 allows a feature without a place
        return [] if node.get("geometry") is None else _polygons(node["geometry"], given)
    if kind == "Polygon":
        return [_polygon(_list(node, "coordinates", given), given)]
    if kind == "MultiPolygon":
        return [_polygon(rings, given) for rings in _list(node, "coordinates", given)]
    if kind in ("Point", "MultiPoint", "LineString", "MultiLineString"):
        raise AnchorError(f"{given} holds a {kind}, which encloses nothing: draw a polygon around it (a buffer)")
    raise AnchorError(f"{given} has the type {_short(kind)}; {REMEDY}")


def _list(node: dict[str, Any], key: str, given: str) -> list[Any]:
    value = node.get(key)
    if not isinstance(value, list):
        raise AnchorError(f"{given}: the {node['type']} has no list {key!r}; {REMEDY}")
    return value


def _check_crs(node: dict[str, Any], given: str) -> None:
    """RFC 7946 knows WGS 84 only; GeoJSON of 2008 could name another one."""
    if "crs" not in node:
        return
    crs = node["crs"]
    properties = crs.get("properties") if isinstance(crs, dict) else None
    name = properties.get("name") if isinstance(properties, dict) else None
    plain = str(name).upper().removeprefix("URN:OGC:DEF:CRS:").split(":")
    if ":".join(part for part in (plain[0], plain[-1]) if part) not in _WGS84 and plain[-1] not in _WGS84:
        raise AnchorError(
            f"{given} has the crs {_short(name or crs)}: reproject it to WGS 84 (ogr2ogr -t_srs EPSG:4326)"
        )


def _polygon(rings: Any, given: str) -> Any:
    import shapely

    if not isinstance(rings, list) or not rings:
        raise AnchorError(f"{given}: a polygon has no rings; {REMEDY}")
    shell, *holes = [_ring(ring, given) for ring in rings]
    try:
        polygon = shapely.Polygon(shell, holes)
    except (ValueError, shapely.errors.ShapelyError) as problem:
        raise AnchorError(f"{given}: a ring is no polygon ({problem}); give rings of four or more positions") from None
    if not polygon.is_valid:
        reason = shapely.is_valid_reason(polygon)
        polygon = shapely.make_valid(polygon)
        if polygon.area == 0:
            raise AnchorError(f"{given}: a polygon encloses nothing ({reason}); draw it again")
    return polygon


def _ring(ring: Any, given: str) -> list[tuple[float, float]]:
    if not isinstance(ring, list):
        raise AnchorError(f"{given}: {_short(ring)} stands where a ring should; {REMEDY}")
    points = [_position(position, given) for position in ring]
    for (lon0, _), (lon1, _) in itertools.pairwise(points):
        if abs(lon1 - lon0) > 180 and abs(lon1 - lon0) != 360:
            raise AnchorError(
                f"{given}: an edge goes from longitude {lon0:g} to {lon1:g}, which can be meant either way round"
                " the Earth: across the antimeridian write longitudes beyond 180 or cut there, else add a vertex"
            )
    return points


def _position(position: Any, given: str) -> tuple[float, float]:
    try:
        lon, lat = (float(v) for v in position[:2])
    except (TypeError, ValueError, OverflowError):
        raise AnchorError(f"{given}: the position {_short(position)} is not [longitude, latitude]") from None
    if not (math.isfinite(lon) and abs(lon) <= 540 and abs(lat) <= 90):
        raise AnchorError(
            f"{given}: the position {_short(position)} is out of range; give [longitude, latitude] in degrees, WGS 84"
        )
    return lon, lat


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
