from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from alphaearth_files import Codes, overview_by_hand, random_codes, write_cog, write_north_up_vrt, write_raster

from fusar_edge.anchors.codes import NODATA, codes_from_sums
from fusar_edge.anchors.sources.rasters import RasterSource, open_raster
from fusar_edge.anchors.sources.source import Cells, Sums
from fusar_edge.errors import AnchorError

WEST, NORTH = 172320, 3932160 + 640  # of a published tile: 160 m fits its edges, 320 m does not


@pytest.fixture(scope="module")
def codes() -> Codes:
    return random_codes(64, 96, masked=0.6)


def copied(source: RasterSource) -> Codes:
    window = source.layers()[source.layer]
    out = np.full((window.row1 - window.row0, window.col1 - window.col0, 64), NODATA, dtype=np.int8)
    source.copy_to(out, source.layer, window)
    return out


def summed(source: RasterSource) -> Codes:
    window = source.layers()[source.layer]
    rows, cols = window.row1 - window.row0, window.col1 - window.col0
    sums = Sums(np.zeros((rows, cols, 64), np.int32), np.zeros((rows, cols), np.int32))
    source.add_to(sums, source.layer, window)
    return codes_from_sums(*sums)


@pytest.mark.parametrize("bottom_up", [False, True])
@pytest.mark.parametrize("spacing_m", [20, 80, 160])
def test_an_overview_gives_what_its_pixels_give(tmp_path: Path, codes: Codes, spacing_m: int, bottom_up: bool) -> None:
    tile = write_cog(
        tmp_path / "t.tiff", codes, west=WEST, north=NORTH, bottom_up=bottom_up, factors=(2, 4, 8, 16), block=32
    )
    source = open_raster(str(tile), year=2024, spacing_m=spacing_m, overviews=True)
    pixels = open_raster(str(tile), year=2024, spacing_m=spacing_m)
    assert (source.pixel_m, source.overview) == (spacing_m, {20: 0, 80: 2, 160: 3}[spacing_m])
    assert source.layers() == pixels.layers()
    found, expected = copied(source), overview_by_hand(codes, spacing_m // 10)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(summed(source), expected)
    means = summed(pixels)
    np.testing.assert_array_equal(means[..., 0] == NODATA, expected[..., 0] == NODATA)
    assert np.abs(means.astype(int) - expected).max() <= 1
    counts = (codes[..., 0] != NODATA).reshape(len(found), spacing_m // 10, -1, spacing_m // 10).sum(axis=(1, 3))
    np.testing.assert_array_equal(means[counts == 1], expected[counts == 1])
    assert spacing_m > 20 or (counts == 1).sum() > 100


def test_a_part_of_an_overview_is_its_part_of_the_cells(tmp_path: Path, codes: Codes) -> None:
    expected = overview_by_hand(codes, 4)
    for bottom_up in (False, True):
        tile = write_cog(tmp_path / "t.tiff", codes, west=WEST, north=NORTH, bottom_up=bottom_up)
        source = open_raster(str(tile), year=2024, spacing_m=40, overviews=True)
        box = source.layers()[source.layer]
        out = np.full((5, 7, 64), NODATA, dtype=np.int8)
        source.copy_to(out, source.layer, Cells(box.col0 + 3, box.row1 - 9, box.col0 + 10, box.row1 - 4))
        np.testing.assert_array_equal(out, expected[4:9, 3:10])


def test_at_the_spacing_of_the_pixels_the_pixels_are_read(tmp_path: Path, codes: Codes) -> None:
    tile = write_cog(tmp_path / "t.tiff", codes, west=WEST, north=NORTH)
    source = open_raster(str(tile), year=2024, spacing_m=10, overviews=True)
    assert source.overview is None
    np.testing.assert_array_equal(copied(source), codes)


@pytest.mark.parametrize(("factors", "there"), [((2, 4), r"20, 40\."), ((), r"none\.")])
def test_a_spacing_without_an_overview_names_those_that_exist(
    tmp_path: Path, codes: Codes, factors: tuple[int, ...], there: str
) -> None:
    tile = write_cog(tmp_path / "t.tiff", codes, west=WEST, north=NORTH, factors=factors)
    with pytest.raises(
        AnchorError, match=rf"t\.tiff: no overview of 80 m; there are \(metres\): {there} .*--overviews"
    ):
        open_raster(str(tile), year=2024, spacing_m=80, overviews=True)


def test_an_overview_off_the_grid_of_the_table_is_refused(tmp_path: Path) -> None:
    tile = write_cog(tmp_path / "t.tiff", random_codes(64, 64), west=WEST, north=NORTH, factors=(32,))
    with pytest.raises(
        AnchorError, match=r"t\.tiff: its overview .* not on multiples of 320 m; build without --overviews"
    ):
        open_raster(str(tile), year=2024, spacing_m=320, overviews=True)
    assert open_raster(str(tile), year=2024, spacing_m=320).pixel_m == 10


def test_an_overview_of_a_size_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    import rasterio

    tile = write_raster(tmp_path / "t.tif", random_codes(50, 49), west=WEST, north=NORTH)
    with rasterio.open(tile, "r+") as dataset:
        dataset.build_overviews([2])
    with pytest.raises(
        AnchorError, match=r"t\.tif: its overview has pixels of 19\.6 x 20 m .* build without --overviews"
    ):
        open_raster(str(tile), year=2024, spacing_m=20, overviews=True)


def test_the_vrt_beside_a_bottom_up_file_gives_the_codes_of_the_file(tmp_path: Path, codes: Codes) -> None:
    tile = write_cog(tmp_path / "t.tiff", codes, west=WEST, north=NORTH, bottom_up=True)
    vrt = write_north_up_vrt(tmp_path / "t.vrt", tile)
    straight, turned = (open_raster(str(path), year=2024, spacing_m=10) for path in (tile, vrt))
    assert (straight.northward, turned.northward) == (True, False)
    assert straight.layers() == turned.layers()
    for source in (straight, turned):
        np.testing.assert_array_equal(copied(source), codes)
