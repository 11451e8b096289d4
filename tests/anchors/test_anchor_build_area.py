"""What an area, several years and several rasters make of a table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyproj
import pytest
from alphaearth_files import Codes, random_codes, write_points, write_raster
from hypothesis import given, settings
from hypothesis import strategies as st

from fusar_edge.anchors.areas.area import area_from_bounds, area_from_geojson
from fusar_edge.anchors.building.build import build_table
from fusar_edge.anchors.building.extent import snapped
from fusar_edge.anchors.codes import NODATA, vectors_from_codes
from fusar_edge.anchors.sources.source import Cells
from fusar_edge.anchors.table import AnchorTable
from fusar_edge.anchors.verify import verify_table
from fusar_edge.errors import AnchorError

WEST, NORTH = 358400, 4915200  # on multiples of 1024 pixels
TO_LONLAT = pyproj.Transformer.from_crs(32616, 4326, always_xy=True)


def stored(table: Path, year_index: int = 0) -> Codes:
    [zone] = AnchorTable.open(table).zones
    return np.asarray(zone.array[year_index])


def test_only_cells_that_the_area_touches_are_built(tmp_path: Path) -> None:
    codes = random_codes(60, 80)
    tile = write_raster(tmp_path / "t.tif", codes, west=WEST, north=NORTH)
    triangle = [(WEST + 105, NORTH - 105), (WEST + 505, NORTH - 105), (WEST + 105, NORTH - 395)]
    ring = [TO_LONLAT.transform(x, y) for x, y in [*triangle, triangle[0]]]
    (tmp_path / "aoi.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    area = area_from_geojson(tmp_path / "aoi.geojson")
    manifest = build_table([tile], tmp_path / "t", years=[2024], spacing_m=10, area=area)
    found = stored(tmp_path / "t")
    row, col = np.mgrid[: codes.shape[0], : codes.shape[1]]
    # The corner of a cell that is nearest to the right angle is inside: the cell is touched.
    x, y = np.maximum(WEST + 10 * col, triangle[0][0]), np.minimum(NORTH - 10 * row, triangle[0][1])
    share = (x - triangle[0][0]) / 400 + (triangle[0][1] - y) / 290
    touched = (share < 1) & (WEST + 10 * (col + 1) > triangle[0][0]) & (NORTH - 10 * (row + 1) < triangle[0][1])
    np.testing.assert_array_equal(found[touched], codes[touched])
    assert (found[~touched] == NODATA).all()
    assert manifest.figures["zones"]["utm16n"]["valid_cells"] == {"2024": int(touched.sum())}
    assert manifest.figures["area"]["type"] == "Polygon"


def test_a_table_of_an_area_is_cut_to_whole_pieces_and_holds_the_same_bytes(tmp_path: Path) -> None:
    codes = random_codes(8, 2200)
    tile = write_raster(tmp_path / "t.tif", codes, west=WEST, north=NORTH)
    west, south = TO_LONLAT.transform(WEST + 12_005, NORTH - 75)
    east, north = TO_LONLAT.transform(WEST + 12_495, NORTH - 5)
    area = area_from_bounds(west, south, east, north)
    figure = build_table([tile], tmp_path / "t", years=[2024], spacing_m=10, area=area).figures["zones"]["utm16n"]
    assert figure["utm_bounds"] == [WEST + 10_240, NORTH - 80, WEST + 20_480, NORTH]
    assert stored(tmp_path / "t").shape == (8, 1024, 64)
    np.testing.assert_array_equal(stored(tmp_path / "t")[2:6, 180:220], codes[2:6, 1204:1244])
    lon, lat = TO_LONLAT.transform(WEST + np.array([12_105, 12_105, 5]), NORTH - np.array([45, 4500, 45]))
    assert AnchorTable.open(tmp_path / "t").lookup(lon, lat).counts == {
        "outside": 2, "no_year": 0, "masked": 0, "found": 1,
    }  # fmt: skip


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_cut_box_holds_the_area_starts_on_a_piece_and_stays_inside(data: st.DataObject) -> None:
    sides = st.integers(-500, 500)
    (c0, c1), (r0, r1) = (sorted(data.draw(st.tuples(sides, sides), "box")) for _ in range(2))
    (a0, a1), (b0, b1) = (sorted(data.draw(st.tuples(sides, sides), "area")) for _ in range(2))
    step = data.draw(st.sampled_from([1, 7, 64, 512]))
    box, area = Cells(c0, r0, c1 + 1, r1 + 1), Cells(a0, b0, a1 + 1, b1 + 1)
    cut, part = snapped(box, area, step), box.overlap(area)
    if part is None:
        assert cut is None
        return
    assert cut is not None
    assert cut.overlap(part) == part
    assert cut.overlap(box) == cut
    assert (cut.col0 - box.col0) % step == (box.row1 - cut.row1) % step == 0
    assert cut.col0 > part.col0 - step
    assert cut.row1 < part.row1 + step
    assert (cut.col1 - cut.col0) % step == 0 or cut.col1 == box.col1
    assert (cut.row1 - cut.row0) % step == 0 or cut.row0 == box.row0


def test_an_area_that_no_source_touches_is_refused(tmp_path: Path) -> None:
    tile = write_raster(tmp_path / "t.tif", random_codes(8, 8), west=WEST, north=NORTH)
    with pytest.raises(
        AnchorError, match=r"t\.tif \(2024, lon -88\.77.*: nothing in what was asked for \(years 2024; lon 10\.0"
    ):
        build_table([tile], tmp_path / "t", years=[2024], spacing_m=10, area=area_from_bounds(10, 40, 11, 41))
    assert [p.name for p in tmp_path.iterdir()] == ["t.tif"]


def test_several_years_stand_in_one_table(tmp_path: Path) -> None:
    codes = {year: random_codes(20, 30, seed=year) for year in (2021, 2023, 2024)}
    tiles = [write_raster(tmp_path / f"{y}.tif", c, west=WEST, north=NORTH) for y, c in codes.items()]
    named = [f"{tile}@{year}" for tile, year in zip(tiles, codes, strict=True)]
    manifest = build_table(named[::-1], tmp_path / "t", spacing_m=10)
    assert manifest.figures["years"] == [2021, 2023, 2024]
    for index, values in enumerate(codes.values()):
        np.testing.assert_array_equal(stored(tmp_path / "t", index), values)
    verify_table(tmp_path / "t")
    with pytest.raises(AnchorError, match=r"2021\.tif@2021: not among the years asked for, 2024"):
        build_table([named[0]], tmp_path / "u", years=[2024], spacing_m=10)
    with pytest.raises(AnchorError, match="does not say its year"):
        build_table([tiles[0]], tmp_path / "u", years=[2023, 2024], spacing_m=10)


def test_a_node_without_a_vector_gets_the_nearest_years_and_that_is_recorded(tmp_path: Path) -> None:
    codes = {year: random_codes(4, 4, seed=year) for year in (2020, 2022, 2024)}
    codes[2022][0, 0] = codes[2020][0, 1] = codes[2022][0, 1] = NODATA
    for year in codes:
        codes[year][0, 2] = NODATA
    tiles = [write_raster(tmp_path / f"{y}.tif", c, west=WEST, north=NORTH) for y, c in codes.items()]
    build_table([f"{t}@{y}" for t, y in zip(tiles, codes, strict=True)], tmp_path / "t", spacing_m=10)
    table = AnchorTable.open(tmp_path / "t")
    lon, lat = TO_LONLAT.transform(WEST + 5 + 10 * np.arange(4), np.full(4, NORTH - 5))
    anchors = table.lookup(lon, lat, 2022, nearest=True)
    expected = [codes[2020][0, 0], codes[2024][0, 1], codes[2022][0, 2], codes[2022][0, 3]]
    np.testing.assert_array_equal(anchors.codes, expected)
    assert anchors.years == {2020: 1, 2022: 1, 2024: 1}
    assert anchors.counts == {"outside": 0, "no_year": 0, "masked": 1, "found": 3}
    assert table.lookup(lon, lat, 2030, nearest=True).years == {2024: 3}
    assert table.lookup(lon, lat, 2022).counts["masked"] == 3
    assert table.lookup(lon, lat, 2021).counts["no_year"] == 4
    assert table.lookup(lon, lat, 2022).years == {2022: 1}


@pytest.mark.parametrize("bottom_up", [False, True])
def test_rasters_that_overlap_in_a_year_are_refused_those_that_touch_are_not(tmp_path: Path, bottom_up: bool) -> None:
    codes = random_codes(20, 20)
    first = write_raster(tmp_path / "a.tif", codes, west=WEST, north=NORTH)
    touching = write_raster(tmp_path / "b.tif", codes, west=WEST + 200, north=NORTH, bottom_up=bottom_up)
    over = write_raster(tmp_path / "c.tif", codes, west=WEST + 190, north=NORTH + 190, bottom_up=bottom_up)
    with pytest.raises(AnchorError, match=r"a\.tif and .*c\.tif overlap in the same year"):
        build_table([first, over], tmp_path / "t", years=[2024], spacing_m=80)
    build_table([first, touching], tmp_path / "t", years=[2024], spacing_m=80)
    build_table([f"{first}@2023", f"{over}@2024"], tmp_path / "u", spacing_m=80)


def test_a_raster_and_points_in_one_cell_are_averaged(tmp_path: Path) -> None:
    codes = random_codes(2, 2)
    tile = write_raster(tmp_path / "t.tif", codes, west=WEST, north=NORTH)
    lon, lat = TO_LONLAT.transform(WEST + 3, NORTH - 3)
    extra = vectors_from_codes(random_codes(1, 1, seed=4)[0]).astype(np.float64)
    points = write_points(tmp_path / "p.csv", lat, lon, extra)
    build_table([tile, points], tmp_path / "t", years=[2024], spacing_m=20)
    mean = np.sign(codes.astype(float)) * (codes / 127.5) ** 2
    total = mean.reshape(4, 64).sum(axis=0) + extra[0]
    total /= np.linalg.norm(total)
    found = vectors_from_codes(stored(tmp_path / "t"))[0, 0]
    np.testing.assert_allclose(found, total, atol=0.01)
