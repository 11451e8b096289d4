"""Where a scene lies on the map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from map_scenes import bent_gcps, dots, write_scene
from rasterio.transform import Affine

from fusar_edge.sar.scene import Scene, open_scene
from fusar_edge.sar.tiles import plan_tiles
from fusar_edge.service.map.ground import WORLD_M, bounds_deg, mercator, patch_under, resolution_m, tile_plan
from fusar_edge.service.map.xyz import native_zoom, tile_bounds


@pytest.fixture(params=["utm", "gcps", "antimeridian"])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    values = dots(700, 900)
    if request.param == "gcps":
        path = write_scene(tmp_path / "s.tif", values, gcps=bent_gcps(700, 900), crs="EPSG:4326")
    elif request.param == "antimeridian":
        place = Affine(10, 0, 815_000, 0, -10, 100_000)  # zone 60 ends at 833 km there
        path = write_scene(tmp_path / "s.tif", np.tile(values, (1, 4)), crs="EPSG:32660", transform=place)
    else:
        path = write_scene(tmp_path / "s.tif", values)
    return open_scene(path)


def test_mercator_is_that_of_epsg_3857() -> None:
    import pyproj

    lon, lat = np.array([-179.0, 0.0, 12.5, 200.0]), np.array([-80.0, 0.0, 43.2, 60.0])
    east, north = pyproj.Transformer.from_crs("OGC:CRS84", "EPSG:3857", always_xy=True).transform(lon[:3], lat[:3])
    np.testing.assert_allclose(mercator(lon, lat)[0][:3], east, atol=1e-6)
    np.testing.assert_allclose(mercator(lon, lat)[1][:3], north, atol=1e-6)
    assert mercator(200.0, 0.0)[0] == pytest.approx(mercator(-160.0, 0.0)[0] + WORLD_M)


def test_the_patch_under_a_tile_holds_every_pixel_of_the_scene_that_lies_in_it(scene: Scene) -> None:
    random = np.random.default_rng(1)
    x, y = random.uniform(0, scene.width, 4000), random.uniform(0, scene.height, 4000)
    east, north = mercator(*scene.lonlat(x, y))
    east = (east + WORLD_M / 2) % WORLD_M - WORLD_M / 2
    zoom = native_zoom(scene)
    seen = 0
    for z in (zoom - 3, zoom - 1, zoom):
        col = ((east / WORLD_M + 0.5) * 2**z).astype(int)
        row = ((0.5 - north / WORLD_M) * 2**z).astype(int)
        for tile in sorted({(int(c), int(r)) for c, r in zip(col, row, strict=True)}):
            patch = patch_under(scene, tile_bounds(z, *tile))
            assert patch is not None
            mine = (col == tile[0]) & (row == tile[1])
            window = patch.window
            assert x[mine].min() >= window.col_off
            assert x[mine].max() <= window.col_off + window.width
            assert y[mine].min() >= window.row_off
            assert y[mine].max() <= window.row_off + window.height
            seen += int(mine.sum())
    assert seen == 3 * 4000


def test_a_patch_is_not_much_larger_than_its_tile(tmp_path: Path) -> None:
    with open_scene(write_scene(tmp_path / "s.tif", np.full((6000, 6000), 9, np.uint8))) as scene:
        zoom = native_zoom(scene)
        east, north = mercator(*scene.lonlat(3000, 3000))
        tile = int((east / WORLD_M + 0.5) * 2**zoom), int((0.5 - north / WORLD_M) * 2**zoom)
        patch = patch_under(scene, tile_bounds(zoom, *tile))
        assert patch is not None
        assert max(patch.window.width, patch.window.height) < 700


def test_a_tile_elsewhere_has_no_patch(scene: Scene) -> None:
    assert patch_under(scene, tile_bounds(8, 128, 120)) is None


def test_the_resolution_is_that_of_the_ground_stretched_by_the_latitude(tmp_path: Path) -> None:
    with open_scene(write_scene(tmp_path / "s.tif", dots(500, 500))) as scene:
        lat = float(scene.lonlat(250, 250)[1])
        assert resolution_m(scene) == pytest.approx(10 / np.cos(np.deg2rad(lat)), rel=5e-3)


def test_bounds_go_on_beyond_180_degrees(scene: Scene) -> None:
    west, south, east, north = bounds_deg(scene)
    assert west < east < west + 2
    assert south < north
    if scene.crs_name == "EPSG:32660":
        assert west < 180 < east


def test_outlines_of_tiles_are_the_corners_of_their_footprints(scene: Scene) -> None:
    windows = plan_tiles(scene.width, scene.height, 504, 64)
    features = tile_plan(scene, windows)["features"]
    assert [feature["id"] for feature in features] == list(range(len(windows)))
    for feature, window in zip(features, windows, strict=True):
        footprint = np.array(scene.footprint(window))
        for corner in np.array(feature["geometry"]["coordinates"][0]):
            assert np.abs(footprint - corner).max(axis=1).min() < 2e-6
