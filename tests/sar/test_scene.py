"""Reading synthetic scenes: values, validity, windows, tags."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusar_edge.errors import SceneError
from fusar_edge.sar.radiometry import Radiometry, grey_from_values
from fusar_edge.sar.scene import open_scene
from fusar_edge.sar.tiles import TileWindow

WriteScene = Callable[..., Path]

WHOLE = TileWindow(0, 0, 20, 30)


def _db(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(-15, 4, (20, 30)).astype(np.float32)


def test_a_window_is_the_same_part_of_the_whole(write_scene: WriteScene) -> None:
    db = _db()
    with open_scene(write_scene(db)) as scene:
        part = scene.read(TileWindow(3, 5, 7, 11))
        whole = scene.read(WHOLE)
    assert (scene.width, scene.height, scene.kind, scene.crs_name) == (30, 20, "db", "EPSG:32611")
    np.testing.assert_array_equal(part.grey, whole.grey[3:10, 5:16])
    np.testing.assert_array_equal(whole.grey, grey_from_values(db, "db", Radiometry()))
    assert part.grey.dtype == np.float32
    assert part.valid.all()


def test_the_given_radiometry_is_used(write_scene: WriteScene) -> None:
    with open_scene(write_scene(_db()), radiometry=Radiometry(db_white=-10)) as scene:
        np.testing.assert_array_equal(scene.read(WHOLE).grey, grey_from_values(_db(), "db", Radiometry(db_white=-10)))


@pytest.mark.parametrize("nodata", [None, -99.0, 0.0, float("nan")])
def test_nodata_nan_and_infinity_are_invalid_and_black(write_scene: WriteScene, nodata: float | None) -> None:
    db = _db()
    db[0, 0], db[1, 1], db[2, 2] = np.nan, np.inf, -np.inf
    expected = np.ones(db.shape, bool)
    expected[[0, 1, 2], [0, 1, 2]] = False
    if nodata is not None:
        db[3, 3] = nodata
        expected[3, 3] = False
    with open_scene(write_scene(db, nodata=nodata)) as scene:
        tile = scene.read(WHOLE)
    assert scene.kind == "db"
    np.testing.assert_array_equal(tile.valid, expected)
    assert (tile.grey[~expected] == 0).all()
    assert (tile.grey[expected] > 0).all()


def test_a_mask_inside_the_file_is_respected(write_scene: WriteScene) -> None:
    import rasterio

    mask = np.full((20, 30), 255, np.uint8)
    mask[:, :4] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        path = write_scene(np.full((20, 30), 90, np.uint8))
        with rasterio.open(path, "r+") as file:
            file.write_mask(mask)
    with open_scene(path) as scene:
        tile = scene.read(WHOLE)
    np.testing.assert_array_equal(tile.valid, mask > 0)
    assert (tile.grey[:, :4] == 0).all()


def test_zero_of_a_uint8_scene_without_nodata_is_a_dark_pixel(write_scene: WriteScene) -> None:
    with open_scene(write_scene(np.zeros((20, 30), np.uint8))) as scene:
        assert scene.kind == "uint8"
        assert scene.read(WHOLE).valid.all()


def test_non_negative_floats_are_power(write_scene: WriteScene) -> None:
    power = 10 ** (_db() / 10)
    with open_scene(write_scene(power)) as scene:
        assert scene.kind == "power"
        np.testing.assert_allclose(scene.read(WHOLE).grey, grey_from_values(_db(), "db", Radiometry()), rtol=1e-5)


def test_the_kind_is_decided_once_and_not_by_the_tile(write_scene: WriteScene) -> None:
    db = np.full((400, 400), 2.0, np.float32)
    db[300:] = -20.0  # a tile in the upper part holds no negative value
    with open_scene(write_scene(db)) as scene:
        assert scene.kind == "db"
        assert (scene.read(TileWindow(0, 0, 50, 50)).grey == 1).all()


def test_the_second_band_is_read_when_asked_and_recorded_by_name(write_scene: WriteScene) -> None:
    import rasterio

    path = write_scene(np.stack([_db(1), _db(2)]))
    with rasterio.open(path, "r+") as file:
        file.descriptions = ("VV", "VH")
    with open_scene(path) as first, open_scene(path, band=2) as second:
        assert (first.band_name, second.band_name) == ("VV", "VH")
        np.testing.assert_array_equal(second.read(WHOLE).grey, grey_from_values(_db(2), "db", Radiometry()))


def test_uint16_is_accepted_once_calibrated_by_scale_and_named(write_scene: WriteScene) -> None:
    import rasterio

    numbers = np.full((20, 30), 300, np.uint16)
    path = write_scene(numbers)
    with rasterio.open(path, "r+") as file:
        file.scales = (0.001,)
    with open_scene(path, values="amplitude") as scene:
        np.testing.assert_allclose(scene.read(WHOLE).grey, 0.3, rtol=1e-6)


def test_valid_pixels_in_a_corner_that_no_sample_meets_are_found(write_scene: WriteScene) -> None:
    db = np.full((700, 700), np.nan, np.float32)
    db[100, 100] = -12.0
    with open_scene(write_scene(db)) as scene:
        assert scene.kind == "db"


@pytest.mark.parametrize(
    ("name", "tags", "acquired"),
    [
        ("S1A_IW_GRDH_1SDV_20150203T043109_20150203T043134_004454_00574F_6D00_x.tif", {}, "2015-02-03T04:31:09Z"),
        ("s1a-iw-grd-vv-20150203t043109-20150203t043134-004454-00574f-001.tif", {}, "2015-02-03T04:31:09Z"),
        (
            "OPERA_L2_RTC-S1_T137-292318-IW1_20250102T015857Z_20250102T190143Z_S1A_30_v1.0_VH.tif",
            {},
            "2025-01-02T01:58:57Z",
        ),
        ("x.tif", {"acquired": "2024-05-06T07:08:09+02:00"}, "2024-05-06T05:08:09Z"),
        (
            "x.tif",
            {"source": "S1A_IW_GRDH_1SDV_20201107T135241_20201107T135306_035143_041A16_322B"},
            "2020-11-07T13:52:41Z",
        ),
        ("port_20210105.tif", {"TIFFTAG_DATETIME": "2022:01:01 00:00:00"}, None),
        ("S1A_IW_GRDH_1SDV_20159903T043109_20150203T043134_004454_00574F_6D00.tif", {}, None),
    ],
)
def test_the_time_of_acquisition_is_given_only_when_certain(
    write_scene: WriteScene, name: str, tags: dict[str, str], acquired: str | None
) -> None:
    with open_scene(write_scene(_db(), name, tags)) as scene:
        assert scene.acquired == acquired


def test_reading_a_tile_does_not_read_the_rest(write_scene: WriteScene) -> None:
    import rasterio

    path = write_scene(np.full((1280, 1280), 9, np.uint8), tiled=True, blockxsize=64, blockysize=64, compress="deflate")
    with rasterio.open(path) as file:
        damaged = int(file.get_tag_item("BLOCK_OFFSET_10_10", "TIFF", bidx=1))
    data = bytearray(path.read_bytes())
    data[damaged : damaged + 8] = b"no zlib!"
    path.write_bytes(data)
    with open_scene(path) as scene:
        assert scene.read(TileWindow(576, 576, 64, 64)).valid.all()
        with pytest.raises(SceneError, match="rows 640-704, columns 640-704 cannot be read"):
            scene.read(TileWindow(640, 640, 64, 64))


def test_a_window_that_leaves_the_scene_is_refused(write_scene: WriteScene) -> None:
    with open_scene(write_scene(_db())) as scene, pytest.raises(SceneError, match="leaves the scene of 30 x 20"):
        scene.read(TileWindow(0, 20, 20, 11))


def test_no_side_file_is_written_or_believed(write_scene: WriteScene, tmp_path: Path) -> None:
    path = write_scene(_db())
    path.with_suffix(".tif.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><NoDataValue>-15</NoDataValue></PAMRasterBand>'
        '<Metadata><MDI key="acquired">1999-01-01</MDI></Metadata></PAMDataset>'
    )
    with open_scene(path) as scene:
        assert scene.acquired is None
        scene.read(WHOLE)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.tif", "s.tif.aux.xml"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400), st.integers(0, 400))
def test_damaged_bytes_give_a_scene_or_a_scene_error_and_no_other_error(
    write_scene: WriteScene, noise: bytes, at: int
) -> None:
    path = write_scene(_db(), compress="deflate")
    data = bytearray(path.read_bytes())
    data[at : at + len(noise)] = noise
    path.write_bytes(data)
    with contextlib.suppress(SceneError), open_scene(path) as scene:
        scene.read(TileWindow(0, 0, min(scene.height, 9), min(scene.width, 9)))
    path.unlink()
