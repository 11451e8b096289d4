"""The anchors of a tile in any CRS, over a zone's edge and over the antimeridian; against pyproj and the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyproj
import pytest
from alphaearth_files import random_codes, write_points, write_raster
from hypothesis import given, settings
from hypothesis import strategies as st

from fusar_edge.anchors.building.build import build_table
from fusar_edge.anchors.codes import codes_from_vectors, vectors_from_codes
from fusar_edge.anchors.grid import tile_xy
from fusar_edge.anchors.table import AnchorTable
from fusar_edge.anchors.zones import lonlat_from_crs

WEST, NORTH = 358400, 4906560


@given(
    st.integers(1, 9),
    st.integers(1, 600),
    st.integers(1, 600),
    st.sampled_from([3857, 32616, 3035, 4326, "EPSG:3395", "OGC:CRS84"]),
)
@settings(max_examples=60, deadline=None)
def test_nodes_stand_on_pixel_centres_as_rasterio_and_pyproj_place_them(
    nodes: int, height: int, width: int, crs: object
) -> None:
    from rasterio.transform import Affine, xy

    place = {4326: (0.001, 10.0, -0.001, 50.0), "OGC:CRS84": (0.001, 10.0, -0.001, 50.0)}
    a, c, e, f = place.get(crs, (10.0, 400_000.0, -10.0, 3_000_000.0))  # type: ignore[arg-type]
    transform = Affine(a, a / 7, c, e / 9, e, f)
    lon, lat = lonlat_from_crs(crs).transform(*tile_xy(transform, height, width, nodes))
    assert lon.shape == lat.shape == (nodes * nodes,)
    steps = [np.linspace(0, side - 1, nodes) if nodes > 1 else np.array([(side - 1) / 2]) for side in (height, width)]
    rows, cols = (v.ravel() for v in np.meshgrid(*steps, indexing="ij"))
    xs, ys = xy(transform, rows, cols, offset="center")
    expected = pyproj.Transformer.from_crs(pyproj.CRS.from_user_input(crs), 4326, always_xy=True).transform(xs, ys)
    np.testing.assert_allclose([lon, lat], expected, atol=1e-9)


def test_a_tile_on_the_sources_grid_gets_the_sources_bytes(tmp_path: Path) -> None:
    codes = random_codes(90, 90, masked=0.1)
    tile = write_raster(tmp_path / "t.tif", codes, west=WEST, north=NORTH)
    build_table([tile], tmp_path / "t", years=[2024], spacing_m=10)
    transform = (10, 0, WEST + 100, 0, -10, NORTH - 200)
    anchors, positions = AnchorTable.open(tmp_path / "t").lookup_tile(transform, "EPSG:32616", 35, 18, 18)
    rows = np.floor(np.linspace(0.5, 34.5, 18)).astype(int) + 20
    np.testing.assert_array_equal(anchors.codes.reshape(18, 18, 64), codes[np.ix_(rows, np.arange(10, 28))])
    assert positions.shape == (324, 2)
    assert positions[0].tolist() == [0, 0]
    assert positions[-1].tolist() == [1, 1]


@pytest.mark.parametrize(("lon", "zones"), [(-90.0, {"utm15n", "utm16n"}), (180.0, {"utm60n", "utm01n"})])
def test_a_tile_over_a_zones_edge_finds_both_sides(tmp_path: Path, lon: float, zones: set[str]) -> None:
    nodes, half = 8, 0.01
    transform = (2 * half / nodes, 0, lon - half, 0, -2 * half / nodes, 44 + half)
    at = tile_xy(transform, nodes, nodes, nodes)
    vectors = vectors_from_codes(random_codes(1, nodes * nodes)[0])
    wrapped = (at[0] + 180) % 360 - 180
    points = write_points(tmp_path / "p.csv", at[1], wrapped, vectors)
    manifest = build_table([points], tmp_path / "t", spacing_m=80)
    assert set(manifest.figures["zones"]) == zones
    anchors, _ = AnchorTable.open(tmp_path / "t").lookup_tile(transform, 4326, nodes, nodes, nodes)
    assert anchors.counts["found"] == nodes * nodes
    np.testing.assert_array_equal(anchors.codes, codes_from_vectors(vectors))


def test_the_side_of_a_zones_edge_that_is_not_built_is_outside_not_an_error(tmp_path: Path) -> None:
    tile = write_raster(tmp_path / "t.tif", random_codes(30, 30), west=WEST, north=NORTH)
    build_table([tile], tmp_path / "t", years=[2024], spacing_m=10)
    transform = (30, 0, WEST - 300, 0, -30, NORTH + 300)
    anchors, _ = AnchorTable.open(tmp_path / "t").lookup_tile(transform, 32616, 20, 20, 10)
    assert anchors.counts == {"outside": 75, "no_year": 0, "masked": 0, "found": 25}
    assert anchors.mask.reshape(10, 10)[5:, 5:].all()


def test_a_tile_in_a_zones_own_crs_and_in_degrees_gets_the_same_anchors(tmp_path: Path) -> None:
    tile = write_raster(tmp_path / "t.tif", random_codes(60, 60, masked=0.2), west=WEST, north=NORTH)
    build_table([tile], tmp_path / "t", years=[2024], spacing_m=10)
    table = AnchorTable.open(tmp_path / "t")
    rng = np.random.default_rng(2)
    x, y = rng.uniform(WEST - 200, WEST + 800, 400), rng.uniform(NORTH - 800, NORTH + 200, 400)
    lon, lat = pyproj.Transformer.from_crs(32616, 4326, always_xy=True).transform(x, y)
    own, degrees = table.lookup_xy(x, y, "EPSG:32616"), table.lookup(lon, lat)
    np.testing.assert_array_equal(own.codes, degrees.codes)
    assert own.counts == degrees.counts
    assert min(own.counts[reason] for reason in ("found", "masked", "outside")) > 20


def test_a_tile_in_one_zones_crs_finds_what_only_the_neighbouring_zone_holds(tmp_path: Path) -> None:
    lon, lat = np.array([-90.02, -90.01, -89.99]), np.full(3, 44.0)  # zones 15, 15 and 16
    vectors = vectors_from_codes(random_codes(1, 3)[0])
    build_table([write_points(tmp_path / "p.csv", lat, lon, vectors)], tmp_path / "t", spacing_m=80)
    x, y = pyproj.Transformer.from_crs(4326, 32616, always_xy=True).transform(lon, lat)
    anchors = AnchorTable.open(tmp_path / "t").lookup_xy(x, y, 32616)
    np.testing.assert_array_equal(anchors.codes, codes_from_vectors(vectors))
