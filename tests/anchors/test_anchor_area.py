from __future__ import annotations

import json
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from fusar_edge.anchors.areas.area import Area, area_from_bounds, area_from_geojson
from fusar_edge.anchors.sources.source import Cells
from fusar_edge.anchors.zones import central_meridian, projection, zones_from_lonlat
from fusar_edge.errors import AnchorError

SQUARE = [[-90.0, 43.0], [-89.9, 43.0], [-89.9, 43.1], [-90.0, 43.1], [-90.0, 43.0]]


def written(folder: Path, document: Any) -> Path:
    path = folder / "aoi.geojson"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def polygon(*rings: Any) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": list(rings)}


def lonlat_cell(zone: str, spacing_m: int, col: int, row: int, grown: float) -> Any:
    """A cell as a polygon in degrees around its zone's meridian, its edges bent as the projection bends them."""
    low, high = -grown, 1 + grown
    ring = shapely.segmentize(shapely.box(col + low, row + low, col + high, row + high), 0.05).exterior.coords
    lon, lat = projection(zone).transform(*(np.array(ring).T * spacing_m), direction="INVERSE")
    middle = central_meridian(zone)
    return shapely.Polygon(np.stack([(lon - middle + 180) % 360 - 180 + middle, lat], axis=1))


@settings(max_examples=25, deadline=None)
@given(
    zone=st.sampled_from(["utm01n", "utm16n", "utm33s", "utm60n", "utm60s"]),
    east=st.floats(-4.0, 4.0),
    lat=st.floats(0.5, 79.0),
    spacing_m=st.sampled_from([10, 80, 640]),
    turn=st.floats(0, 6.28),
    corners=st.integers(3, 7),
    size=st.floats(0.6, 6.0),
)
def test_a_mask_holds_the_cells_that_the_polygon_touches(
    zone: str, east: float, lat: float, spacing_m: int, turn: float, corners: int, size: float
) -> None:
    """Oracle: every cell as a polygon in degrees, projected by pyproj; within 0.15 cells of the edge is free."""
    lat = -lat if zone.endswith("s") else lat
    lon = central_meridian(zone) + east
    angle = turn + np.linspace(0, 2 * np.pi, corners, endpoint=False)
    radius_deg = size * spacing_m / 111_000
    ring = np.stack([lon + radius_deg * np.cos(angle) / np.cos(np.radians(lat)), lat + radius_deg * np.sin(angle)], 1)
    shape = shapely.Polygon(ring)
    area = Area(shapely.Polygon(ring + np.array([0 if lon >= -180 else 360, 0])))
    box = area.cells(zone, spacing_m)
    assert box is not None
    window = Cells(box.col0 - 2, box.row0 - 1, box.col1 + 1, box.row1 + 2)
    mask = area.mask(zone, spacing_m, window)
    assert mask.shape == (window.row1 - window.row0, window.col1 - window.col0)
    for r, c in np.ndindex(mask.shape):
        col, row = window.col0 + c, window.row1 - 1 - r
        if shape.intersects(lonlat_cell(zone, spacing_m, col, row, -0.15)):
            assert mask[r, c], (r, c)
        if not shape.intersects(lonlat_cell(zone, spacing_m, col, row, 0.15)):
            assert not mask[r, c], (r, c)
    inner = mask[2:-1, 2:-1]
    assert mask.sum() == inner.sum()
    assert inner[0].any()
    assert inner[-1].any()
    assert inner[:, 0].any()
    assert inner[:, -1].any()


@pytest.mark.parametrize(
    ("zone", "west", "south", "east", "north"),
    [
        ("utm16n", -93.0, 40.0, -81.0, 83.9),  # the whole reach, to where parallels bend most
        ("utm16s", -93.0, -79.9, -81.0, -40.0),
        ("utm01n", 177.0, -5.0, -171.0, 60.0),
    ],
)
def test_long_straight_edges_stay_within_a_tenth_of_a_cell(
    zone: str, west: float, south: float, east: float, north: float
) -> None:
    area = area_from_bounds(west, south, east, north)
    rng = np.random.default_rng(0)
    along = rng.random(4000)
    width = (east - west) % 360
    lon = np.concatenate([west + width * along, np.full(4000, west), np.full(4000, west + width)])
    lat = np.concatenate([np.full(4000, north), *[south + (north - south) * along] * 2])
    x, y = pyproj.Proj(
        f"EPSG:{32600 if zone[-1] == 'n' else 32700}"[:5] + str((32600 if zone[-1] == "n" else 32700) + int(zone[3:5]))
    )(lon, lat)
    edge = area._in_zone(zone, 10).boundary
    shapely.prepare(edge)
    assert shapely.distance(edge, shapely.points(x, y)).max() < 1.0


def test_a_slanted_edge_stays_within_a_tenth_of_a_cell() -> None:
    corners = np.array([[-92.9, 10.0], [-81.1, 80.0], [-92.9, 80.0]])
    area = Area(shapely.Polygon(corners))
    lonlat = corners[0] + (corners[1] - corners[0]) * np.random.default_rng(0).random((4000, 1))
    points = shapely.points(*projection("utm16n").transform(*lonlat.T))
    assert shapely.distance(area._in_zone("utm16n", 10).boundary, points).max() < 1.0


@settings(max_examples=60, deadline=None)
@given(
    west=st.floats(-180, 179),
    width=st.floats(0.01, 30),
    south=st.floats(-79, 82),
    height=st.floats(0.01, 8),
)
def test_a_box_is_in_the_zones_of_its_points(west: float, width: float, south: float, height: float) -> None:
    north = min(south + height, 84.0)
    east = west + width - (360 if west + width > 180 else 0)
    area = area_from_bounds(west, south, east, north)
    np.testing.assert_allclose(area.bounds, [west, south, east, north], atol=1e-9)
    lon, lat = np.meshgrid(np.linspace(west, west + width, 97)[1:-1], np.linspace(south, north, 23)[1:-1])
    inside = set(zones_from_lonlat(lon.ravel(), lat.ravel()).tolist())
    assert inside <= set(area.zones())
    shares = [part.km2 for part in map(area.in_strip, area.zones()) if part is not None]
    assert sum(shares) == pytest.approx(area.km2, rel=1e-9)
    assert area.intersects(
        (lon[0, 0] + 180) % 360 - 180, lat[0, 0], (lon[0, 0] + 180) % 360 - 179.999, lat[0, 0] + 0.001
    )


def test_zones_are_those_of_the_strips_that_hold_some_of_it() -> None:
    assert area_from_bounds(-121, 36, -119, 38).zones() == ["utm10n", "utm11n"]
    assert area_from_bounds(-126, 36, -120, 38).zones() == ["utm10n"]  # up to the edge is not over it
    assert area_from_bounds(10, -1, 11, 1).zones() == ["utm32n", "utm32s"]
    assert area_from_bounds(179, -20, -179, -10).zones() == ["utm01s", "utm60s"]
    assert len(area_from_bounds(-180, -90, 180, 90).zones()) == 120


def test_cells_reach_three_degrees_over_the_strip_and_no_further() -> None:
    assert area_from_bounds(-119.9, 36, -119.8, 36.1).cells("utm10n", 80) is not None
    assert area_from_bounds(-116.9, 36, -116.8, 36.1).cells("utm10n", 80) is None
    wide = area_from_bounds(-180, 36, 180, 36.1).cells("utm10n", 10)
    reach = area_from_bounds(-129, 36, -117, 36.1).cells("utm10n", 10)
    assert wide == reach
    assert not area_from_bounds(-116.9, 36, -116.8, 36.1).mask("utm10n", 80, Cells(0, 0, 4, 3)).any()


def test_the_antimeridian_is_no_edge() -> None:
    area = area_from_bounds(179.9, 60, -179.9, 60.1)
    assert area.bounds == [179.9, 60.0, -179.9, 60.1]
    west, east = area.cells("utm60n", 80), area.cells("utm01n", 80)
    assert west is not None
    assert east is not None
    middle = Cells(west.col0 + 10, west.row0 + 20, west.col1 - 10, west.row1 - 20)
    assert area.mask("utm60n", 80, middle).all()
    assert area.intersects(-179.95, 60.05, -179.94, 60.06)
    assert area.intersects(179.95, 60.05, 179.96, 60.06)
    assert area.intersects(179.99, 60.05, -179.99, 60.06)
    assert not area.intersects(-179.8, 60.05, 179.8, 60.06)


def test_geometry_split_at_the_antimeridian_is_one_area(tmp_path: Path) -> None:
    there, here = area_from_bounds(170, -20, 180, -10), area_from_bounds(-180, -20, -170, -10)
    both = {"type": "GeometryCollection", "geometries": [here.geojson(), there.geojson()]}
    area = area_from_geojson(written(tmp_path, both))
    assert area.bounds == [170.0, -20.0, -170.0, -10.0]
    assert area.geometry.geom_type == "Polygon"
    assert area.geojson()["type"] == "MultiPolygon"
    again = area_from_geojson(written(tmp_path, area.geojson()))
    assert again.geometry.equals(area.geometry)
    beyond = [[170, -20], [190, -20], [190, -10], [170, -10], [170, -20]]
    assert area_from_geojson(written(tmp_path, polygon(beyond))).geometry.equals(area.geometry)


def test_far_parts_have_the_narrowest_bounds(tmp_path: Path) -> None:
    parts = [area_from_bounds(-150, 60, -149, 61).geojson(), area_from_bounds(178, 60, 179, 61).geojson()]
    area = area_from_geojson(written(tmp_path, {"type": "GeometryCollection", "geometries": parts}))
    assert area.bounds == [178.0, 60.0, -149.0, 61.0]
    assert area.zones() == ["utm06n", "utm60n"]


@pytest.mark.parametrize("bounds", [(-180, -90, 180, 90), (0, -90, 360, 90)])
def test_the_whole_earth_is_an_area(bounds: tuple[float, float, float, float]) -> None:
    area = area_from_bounds(*bounds)
    assert area.km2 == pytest.approx(510_065_621.724, rel=1e-9)  # surface of the WGS 84 ellipsoid
    assert area.bounds == [-180, -90, 180, 90]
    assert area.cells("utm01n", 640) == area.cells("utm31n", 640)


@pytest.mark.parametrize("bounds", [(-90, 43, -88, 45), (170, -20, -170, -10), (0, 70, 3, 84)])
def test_square_kilometres_are_geodesic(bounds: tuple[float, float, float, float]) -> None:
    area = area_from_bounds(*bounds)
    dense = shapely.segmentize(area.geometry, 0.005)
    assert area.km2 == pytest.approx(pyproj.Geod(ellps="WGS84").geometry_area_perimeter(dense)[0] / 1e6, rel=1e-7)


def test_a_slanted_polygon_has_its_square_kilometres() -> None:
    triangle = shapely.Polygon([(0, 0), (20, 10), (0, 50)])
    expected = pyproj.Geod(ellps="WGS84").geometry_area_perimeter(shapely.segmentize(triangle, 0.01))[0] / 1e6
    assert Area(triangle).km2 == pytest.approx(expected, rel=1e-5)


def test_features_collections_and_holes_are_read(tmp_path: Path) -> None:
    hole = [[-89.97, 43.03], [-89.93, 43.03], [-89.93, 43.07], [-89.97, 43.07], [-89.97, 43.03]]
    far = {"type": "MultiPolygon", "coordinates": [[[[x + 1, y, 0.0] for x, y in SQUARE]]]}
    features = [
        {"type": "Feature", "properties": {}, "geometry": polygon(SQUARE, hole)},
        {"type": "Feature", "properties": None, "geometry": None},
        {"type": "Feature", "properties": {}, "geometry": {"type": "GeometryCollection", "geometries": [far]}},
    ]
    area = area_from_geojson(written(tmp_path, {"type": "FeatureCollection", "features": features}))
    assert area.geometry.area == pytest.approx(0.01 + 0.01 - 0.0016)
    assert area.bounds == [-90.0, 43.0, -88.9, 43.1]
    assert not area.intersects(-89.96, 43.04, -89.94, 43.06)
    assert area.intersects(-89.99, 43.04, -89.98, 43.06)
    centre = np.array(projection("utm16n").transform(-89.95, 43.05)) // 80
    col, row = (int(v) for v in centre)
    assert not area.mask("utm16n", 80, Cells(col, row, col + 1, row + 1)).any()


def test_a_ring_that_crosses_itself_is_repaired(tmp_path: Path) -> None:
    bow_tie = [[0.0, 0.0], [2.0, 2.0], [2.0, 0.0], [0.0, 2.0], [0.0, 0.0]]
    area = area_from_geojson(written(tmp_path, polygon(bow_tie)))
    assert area.geometry.area == pytest.approx(2.0)
    assert area.geometry.is_valid


@pytest.mark.parametrize("name", ["urn:ogc:def:crs:OGC:1.3:CRS84", "EPSG:4326", "urn:ogc:def:crs:EPSG::4326"])
def test_a_crs_member_that_says_wgs84_is_accepted(tmp_path: Path, name: str) -> None:
    document = polygon(SQUARE) | {"crs": {"type": "name", "properties": {"name": name}}}
    assert area_from_geojson(written(tmp_path, document)).bounds == [-90.0, 43.0, -89.9, 43.1]


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (polygon(SQUARE) | {"crs": {"type": "name", "properties": {"name": "EPSG:3857"}}}, "EPSG:3857.*reproject"),
        (polygon(SQUARE) | {"crs": {"type": "name", "properties": {"name": "EPSG:32616"}}}, "EPSG:32616"),
        (polygon(SQUARE) | {"crs": None}, "the crs None"),
        ({"type": "Point", "coordinates": [1, 2]}, "a Point, which encloses nothing"),
        ({"type": "Feature", "geometry": {"type": "LineString", "coordinates": [[1, 2], [3, 4]]}}, "LineString"),
        ({"type": "FeatureCollection", "features": []}, "holds no polygon"),
        ({"type": "FeatureCollection"}, "no list 'features'"),
        ({"type": "Topology"}, "type 'Topology'"),
        ([1, 2], "not GeoJSON"),
        (polygon([[0, 0], [1, 1]]), "no polygon"),
        (polygon(), "no rings"),
        (polygon([[0, 0], [1, 1], [2, 2], [0, 0]]), "encloses nothing"),
        (polygon([[0, 0], [1, "x"], [2, 2], [0, 0]]), "is not .longitude, latitude."),
        (polygon([[0, 0], [1, float("nan")], [2, 2], [0, 0]]), "out of range"),
        (polygon([[500000, 4649776], [600000, 4649776], [600000, 4700000], [500000, 4649776]]), "out of range"),
        (polygon([[179, 0], [-179, 0], [-179, 1], [179, 1], [179, 0]]), "either way round"),
        (polygon([[0, -89], [1, -89], [1, -85], [0, -85], [0, -89]]), "no UTM zone"),
    ],
)
def test_geojson_that_cannot_be_used_is_refused_by_name(tmp_path: Path, document: Any, reason: str) -> None:
    with pytest.raises(AnchorError, match=rf"aoi\.geojson.*{reason}"):
        area_from_geojson(written(tmp_path, document))


def test_a_file_that_is_no_json_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "aoi.geojson").write_bytes(b"\x00\xff")
    with pytest.raises(AnchorError, match=r"aoi\.geojson is not JSON"):
        area_from_geojson(tmp_path / "aoi.geojson")
    with pytest.raises(AnchorError, match=r"none\.geojson.*No such file"):
        area_from_geojson(tmp_path / "none.geojson")


@pytest.mark.parametrize(
    ("bounds", "reason"),
    [
        ((0, 10, 1, 10), "south must be less"),
        ((0, 11, 1, 10), "south must be less"),
        ((0, -91, 1, 10), "within -90"),
        ((5, 0, 5, 1), "0 degrees wide"),
        ((-200, 0, 300, 1), "500 degrees wide"),
        ((0, 0, 400, 1), "longitudes -180"),
        ((0, 0, float("nan"), 1), "give west,south,east,north"),
        ((0, 85, 1, 89), "no UTM zone"),
    ],
)
def test_bounds_that_cannot_be_used_are_refused(bounds: tuple[float, float, float, float], reason: str) -> None:
    with pytest.raises(AnchorError, match=reason):
        area_from_bounds(*bounds)


def test_an_area_travels_to_another_process() -> None:
    area = area_from_bounds(170, -20, -170, -10)
    box = area.cells("utm60s", 640)
    again = pickle.loads(pickle.dumps(area))
    assert again.bounds == area.bounds
    assert again.cells("utm60s", 640) == box


def test_a_shard_within_the_area_is_masked_at_once() -> None:
    area = area_from_bounds(-90, 43, -88, 45)
    box = area.cells("utm16n", 10)
    assert box is not None
    window = Cells(box.col0 + 4000, box.row0 + 4000, box.col0 + 4512, box.row0 + 4512)
    area.mask("utm16n", 10, window)
    started = time.perf_counter()
    assert area.mask("utm16n", 10, window).all()
    assert time.perf_counter() - started < 0.02
