"""Map tiles: what is shown, and where."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from map_scenes import bent_gcps, dots, opened_png, pixel_in_tile, tile_over, write_scene
from rasterio.transform import Affine

from fusar_edge.sar.scene import Scene, open_scene
from fusar_edge.sar.tiles import TileWindow
from fusar_edge.service.map.crop import crop_png
from fusar_edge.service.map.xyz import empty_tile, native_zoom, paint_tile


def painted(scene: Scene, z: int, x: int, y: int) -> np.ndarray:
    png = paint_tile(scene, None, z, x, y)
    assert png is not None
    return opened_png(png)


def check_places(scene: Scene, zoom: int, tolerance_px: float) -> int:
    """Bright squares stand in the tiles where `Scene.lonlat` puts them; returns how many were looked at."""
    looked = 0
    for row in range(50, scene.height, 100):
        for col in range(50, scene.width, 100):
            x, y = pixel_in_tile(scene, col + 0.5, row + 0.5, zoom)
            if not (12 < x < 244 and 12 < y < 244):
                continue
            grey = painted(scene, zoom, *tile_over(scene, col + 0.5, row + 0.5, zoom))[0].astype(float)
            left, top = int(x) - 10, int(y) - 10
            light = np.clip(grey[top : top + 21, left : left + 21] - 30, 0, None)
            ys, xs = np.mgrid[top : top + 21, left : left + 21] + 0.5
            assert np.hypot((xs * light).sum() / light.sum() - x, (ys * light).sum() / light.sum() - y) < tolerance_px
            looked += 1
    return looked


def test_a_pixel_is_shown_where_answers_are_placed(tmp_path: Path) -> None:
    with open_scene(write_scene(tmp_path / "s.tif", dots(300, 300))) as scene:
        assert check_places(scene, native_zoom(scene), 0.35) > 4


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # rasterio multiplies transforms with *
@pytest.mark.parametrize("zooms_out", [0, 1])
def test_a_tile_is_that_of_rio_tiler(tmp_path: Path, zooms_out: int) -> None:
    from rio_tiler.io import Reader

    smooth = (127 + 100 * np.sin(np.arange(400) / 9)).astype(np.uint8)
    path = write_scene(tmp_path / "s.tif", np.minimum(*np.meshgrid(smooth, smooth)))
    with open_scene(path) as scene, Reader(str(path)) as reader:
        zoom = native_zoom(scene) - zooms_out
        place = tile_over(scene, 200, 200, zoom)
        image = reader.tile(*place, zoom, resampling_method="bilinear", reproject_method="bilinear")
        tile = painted(scene, zoom, *place)
    inside = (tile[1] > 0) & ~image.array.mask[0]
    assert inside.mean() > 0.5
    assert (inside == (tile[1] > 0)).mean() > 0.99
    difference = np.abs(tile[0].astype(float) - image.array.data[0])[inside]
    assert difference.mean() < 2.0
    assert np.percentile(difference, 99) < 10


def test_so_it_is_where_only_gcps_say_where_the_scene_is(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "s.tif", dots(300, 300), gcps=bent_gcps(300, 300), crs="EPSG:4326")
    with open_scene(path) as scene:
        assert check_places(scene, native_zoom(scene), 0.35) > 4


def test_both_sides_of_the_antimeridian_are_shown(tmp_path: Path) -> None:
    place = Affine(1e-4, 0, 180 - 0.015, 0, -1e-4, 10)
    with open_scene(write_scene(tmp_path / "s.tif", dots(300, 300), crs="EPSG:4326", transform=place)) as scene:
        zoom = native_zoom(scene)
        assert check_places(scene, zoom, 0.35) > 4
        sides = {tile_over(scene, x, 150, zoom)[0] for x in (5, 295)}
        assert {0, 2**zoom - 1} <= sides


def test_the_grey_is_the_models(tmp_path: Path) -> None:
    decibels = np.full((200, 200), -6.0206, np.float32)  # amplitude 0.5
    with open_scene(write_scene(tmp_path / "s.tif", decibels)) as scene:
        zoom = native_zoom(scene)
        tile = painted(scene, zoom, *tile_over(scene, 100, 100, zoom))
        assert set(np.unique(tile[0][tile[1] > 0])) <= {127, 128}


def test_a_lifted_tile_shows_the_square_root(tmp_path: Path) -> None:
    with open_scene(write_scene(tmp_path / "s.tif", np.full((200, 200), 64, np.uint8))) as scene:
        zoom = native_zoom(scene)
        png = paint_tile(scene, None, zoom, *tile_over(scene, 100, 100, zoom), "lifted")
        assert png is not None
        grey, alpha = opened_png(png)
        assert set(np.unique(grey[alpha > 0])) <= {128, 127}


def test_a_ship_of_two_pixels_stays_visible_from_far_away(tmp_path: Path) -> None:
    decibels = np.full((1600, 1600), -22.0, np.float32)
    decibels[800:802, 800:802] = 5.0
    with open_scene(write_scene(tmp_path / "s.tif", decibels)) as scene:
        zoom = native_zoom(scene) - 3
        grey = painted(scene, zoom, *tile_over(scene, 800, 800, zoom))[0]
        assert grey.max() > 2 * np.median(grey[grey > 0])  # the mean of the decibels would be 1.3 times it


def test_what_is_not_valid_is_transparent(tmp_path: Path) -> None:
    values = np.full((200, 200), -10.0, np.float32)
    values[:, :90] = np.nan
    values[:90] = -9999
    with open_scene(write_scene(tmp_path / "s.tif", values, nodata=-9999)) as scene:
        zoom = native_zoom(scene)
        tiles = {(c, r) for c in (20, 180) for r in (20, 180)}
        for col, row in tiles:
            x, y = pixel_in_tile(scene, col, row, zoom)
            alpha = painted(scene, zoom, *tile_over(scene, col, row, zoom))[1]
            assert (alpha[int(y), int(x)] > 0) == (col > 90 and row > 90)


def test_a_tile_without_the_scene_is_empty(tmp_path: Path) -> None:
    with open_scene(write_scene(tmp_path / "s.tif", dots(100, 100))) as scene:
        assert paint_tile(scene, None, 10, 5, 5) == empty_tile()
        assert not opened_png(empty_tile())[1].any()


def test_a_crop_is_the_grey_that_the_model_is_shown(tmp_path: Path) -> None:
    with open_scene(write_scene(tmp_path / "s.tif", dots(300, 400))) as scene:
        window = TileWindow(40, 60, 200, 250)
        grey = opened_png(crop_png(scene, window))[0]
        np.testing.assert_array_equal(grey, np.rint(scene.read(window).grey * 255))


@pytest.mark.parametrize("name", ["s1_port_la_20210105_utm11n_30m_db.tif"])
def test_port_of_los_angeles_shows_its_land_brighter_than_its_sea(real_data: Path, name: str) -> None:
    with open_scene(real_data / "scenes" / name) as scene:
        tile = painted(scene, 11, *tile_over(scene, 300, 120, 11))
        x, y = pixel_in_tile(scene, 300, 120, 11)
        land = tile[0, int(y) - 8 : int(y) + 8, int(x) - 8 : int(x) + 8].mean()
        x, y = pixel_in_tile(scene, 150, 450, 11)
        sea = painted(scene, 11, *tile_over(scene, 150, 450, 11))[0]
        assert land > 4 * sea[int(y) - 8 : int(y) + 8, int(x) - 8 : int(x) + 8].mean()
