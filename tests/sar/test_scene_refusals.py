"""Bad input is a SceneError that names the file and says what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fusar_edge.errors import SceneError
from fusar_edge.sar.scene import open_scene
from fusar_edge.sar.tiles import plan_tiles

WriteScene = Callable[..., Path]

DB = np.linspace(-25, -3, 64 * 64, dtype=np.float32).reshape(64, 64)


def _refused(path: Path, match: str, **options: object) -> None:
    with pytest.raises(SceneError, match=match) as caught:
        open_scene(path, **options)  # type: ignore[arg-type]  # options of several types
    assert str(path) in str(caught.value)


def test_a_file_that_does_not_exist(tmp_path: Path) -> None:
    _refused(tmp_path / "none.tif", "no such file")


def test_a_folder(tmp_path: Path) -> None:
    _refused(tmp_path, "folder")


def test_an_address_is_not_opened_over_the_network() -> None:
    with pytest.raises(SceneError, match="no such file"):
        open_scene("/vsicurl/http://localhost/s.tif")


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "s.tif").touch()
    _refused(tmp_path / "s.tif", "is empty")


def test_a_file_that_is_no_raster(tmp_path: Path) -> None:
    (tmp_path / "s.tif").write_text("no raster at all")
    _refused(tmp_path / "s.tif", "not a readable GeoTIFF")


def test_a_vrt_that_points_to_other_files_is_not_followed(write_scene: WriteScene, tmp_path: Path) -> None:
    vrt = tmp_path / "s.vrt"
    vrt.write_text(
        '<VRTDataset rasterXSize="64" rasterYSize="64"><VRTRasterBand dataType="Float32" band="1"><SimpleSource>'
        f"<SourceFilename>{write_scene(DB)}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    _refused(vrt, "not a readable GeoTIFF")


def test_a_file_cut_in_its_header(write_scene: WriteScene) -> None:
    path = write_scene(DB)
    path.write_bytes(path.read_bytes()[:60])
    _refused(path, "not a readable GeoTIFF|cut or damaged")


@pytest.mark.parametrize("layout", [{}, {"compress": "deflate"}, {"tiled": True, "blockxsize": 64, "blockysize": 64}])
def test_a_file_whose_pixels_are_cut(write_scene: WriteScene, layout: dict[str, object]) -> None:
    noise = np.random.default_rng(0).normal(-15, 4, (640, 640)).astype(np.float32)
    path = write_scene(noise, **layout)
    path.write_bytes(path.read_bytes()[:-5000])

    def read_all() -> None:
        with open_scene(path) as scene:
            for window in plan_tiles(scene.width, scene.height):
                scene.read(window)

    with pytest.raises(SceneError, match="cut or damaged") as caught:
        read_all()
    assert str(path) in str(caught.value)


def test_a_scene_without_crs(write_scene: WriteScene) -> None:
    _refused(write_scene(DB, crs=None), "no CRS")


def test_a_scene_without_any_position(write_scene: WriteScene) -> None:
    _refused(write_scene(DB, nowhere=True), "no position")


def test_a_crs_that_is_no_place_on_earth(write_scene: WriteScene) -> None:
    _refused(write_scene(DB, crs='LOCAL_CS["yard",UNIT["metre",1]]'), "CRS")


def test_a_place_beyond_its_projection(write_scene: WriteScene) -> None:
    from rasterio.transform import Affine

    _refused(write_scene(DB, transform=Affine(10, 0, 1e12, 0, -10, 1e12)), "centre")


def test_a_transform_that_folds_the_scene(write_scene: WriteScene) -> None:
    from rasterio.transform import Affine

    _refused(write_scene(DB, transform=Affine(10, 10, 380_000, 10, 10, 3_735_000)), "line")


@pytest.mark.parametrize("band", [0, 2, -1])
def test_a_band_that_is_not_there(write_scene: WriteScene, band: int) -> None:
    _refused(write_scene(DB), f"--band {band}.*1 to 1", band=band)


@pytest.mark.parametrize(
    ("array", "nodata"),
    [
        (np.full((64, 64), np.nan, np.float32), None),
        (np.full((64, 64), -99, np.float32), -99),
        (np.zeros((64, 64), np.uint8), 0),
    ],
)
def test_a_scene_of_nodata_only(write_scene: WriteScene, array: np.ndarray, nodata: float | None) -> None:
    _refused(write_scene(array, nodata=nodata), "nodata")


def test_complex_values(write_scene: WriteScene) -> None:
    _refused(write_scene(DB.astype(np.complex64)), "complex", values="db")


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32])
def test_numbers_without_calibration(write_scene: WriteScene, dtype: type) -> None:
    _refused(write_scene(np.full((64, 64), 300, dtype)), "calibration.*--values")


def test_floats_called_uint8(write_scene: WriteScene) -> None:
    _refused(write_scene(DB), "float32.*uint8", values="uint8")


def test_an_unknown_kind_of_values(write_scene: WriteScene) -> None:
    path = write_scene(DB)
    with pytest.raises(SceneError, match=r"--values dB: allowed are auto, uint8, db, power, amplitude"):
        open_scene(path, values="dB")


def test_one_huge_block(write_scene: WriteScene) -> None:
    path = write_scene(np.zeros((64, 64), np.uint8), tiled=True, blockxsize=64, blockysize=64, compress="deflate")
    data = path.read_bytes()
    for tag in (b"\x00\x01", b"\x01\x01", b"\x42\x01", b"\x43\x01"):  # width, height, width and height of a tile
        entry = tag + b"\x03\x00\x01\x00\x00\x00"
        assert entry in data
        data = data.replace(entry + (64).to_bytes(2, "little"), entry + (20_000).to_bytes(2, "little"))
    path.write_bytes(data)
    _refused(path, "TILED=YES")


def test_a_mask_beside_the_file_is_not_passed_over_in_silence(write_scene: WriteScene) -> None:
    import rasterio

    path = write_scene(DB)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as file:
        file.write_mask(np.zeros((64, 64), np.uint8))
    _refused(path, r"s\.tif\.msk")
