from __future__ import annotations

from pathlib import Path

import numpy as np
import pyproj
import pytest
from alphaearth_files import Codes, random_codes, write_points, write_raster

from fusar_edge.anchors.building.build import build_table
from fusar_edge.anchors.codes import CREDIT, NODATA, codes_from_vectors, vectors_from_codes
from fusar_edge.anchors.sources import rasters
from fusar_edge.anchors.table import AnchorTable
from fusar_edge.errors import AnchorError, OutputExistsError
from fusar_edge.manifest import read_manifest, sha256_file

WEST, NORTH = 358400, 4906560  # multiples of 80 and 320 in UTM zone 16N


def stored(table: Path, zone: str = "utm16n", year_index: int = 0) -> Codes:
    [found] = [z for z in AnchorTable.open(table).zones if z.name == zone]
    return np.asarray(found.array[year_index])


def mean_by_hand(codes: Codes, factor: int) -> np.ndarray:
    """The official overviews' rule, written as loops: float64 [rows, cols, 64], NaN where no pixel is valid."""
    rows, cols = codes.shape[0] // factor, codes.shape[1] // factor
    out = np.full((rows, cols, 64), np.nan)
    for r in range(rows):
        for c in range(cols):
            cell = codes[r * factor : (r + 1) * factor, c * factor : (c + 1) * factor].reshape(-1, 64)
            cell = cell[(cell != NODATA).all(axis=1)].astype(np.float64)
            if len(cell):
                mean = (np.sign(cell) * (cell / 127.5) ** 2).mean(axis=0)
                out[r, c] = mean / np.linalg.norm(mean)
    return out


@pytest.mark.parametrize("bottom_up", [False, True])
def test_at_the_sources_spacing_the_table_holds_its_very_bytes(tmp_path: Path, bottom_up: bool) -> None:
    codes = random_codes(70, 90, masked=0.2)
    tile = write_raster(tmp_path / "t.tif", codes, west=WEST, north=NORTH, bottom_up=bottom_up)
    build_table([tile], tmp_path / "table", years=[2024], spacing_m=10)
    np.testing.assert_array_equal(stored(tmp_path / "table"), codes)


@pytest.mark.parametrize("spacing_m", [20, 80])
def test_a_cell_is_the_renormalised_mean_of_its_valid_pixels(tmp_path: Path, spacing_m: int) -> None:
    codes = random_codes(64, 80, masked=0.5)
    codes[:8, :8] = NODATA
    codes[9, 9:20, 5] = NODATA  # one band alone masks the pixel
    tile = write_raster(tmp_path / "t.tif", codes, west=WEST, north=NORTH)
    build_table([tile], tmp_path / "table", years=[2024], spacing_m=spacing_m)
    found, expected = stored(tmp_path / "table"), mean_by_hand(codes, spacing_m // 10)
    masked = np.isnan(expected).any(axis=-1)
    assert masked[0, 0]
    np.testing.assert_array_equal((found == NODATA).all(axis=-1), masked)
    wanted = codes_from_vectors(np.nan_to_num(expected), ~masked)
    cells = codes.reshape(len(found), spacing_m // 10, -1, spacing_m // 10, 64).swapaxes(1, 2)
    valid = (cells != NODATA).all(axis=-1)
    several = valid.sum(axis=(2, 3)) > 1
    np.testing.assert_array_equal(found[several], wanted[several])
    single = valid.sum(axis=(2, 3)) == 1  # keeps its codes: as the source has them, of length 1 only within rounding
    np.testing.assert_array_equal(found[single], cells[single][valid[single]])


@pytest.mark.parametrize("spacing_m", [10, 20, 80, 320])
def test_a_bottom_up_copy_gives_the_same_files(tmp_path: Path, spacing_m: int) -> None:
    codes = random_codes(75, 66, masked=0.3)
    place = {"west": WEST + 30, "north": NORTH + 70}  # off the coarse grid
    up = write_raster(tmp_path / "up.tif", codes, **place)
    down = write_raster(tmp_path / "down.tif", codes, bottom_up=True, **place)
    first = build_table([up], tmp_path / "a", years=[2024], spacing_m=spacing_m)
    second = build_table([down], tmp_path / "b", years=[2024], spacing_m=spacing_m)
    assert first.files == second.files
    assert first.figures == second.figures


def test_neither_the_size_of_the_windows_nor_cutting_the_source_changes_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = random_codes(60, 60, masked=0.3)
    whole = write_raster(tmp_path / "whole.tif", codes, west=WEST, north=NORTH)
    left = write_raster(tmp_path / "left.tif", codes[:, :27], west=WEST, north=NORTH)
    right = write_raster(tmp_path / "right.tif", codes[:, 27:], west=WEST + 270, north=NORTH, bottom_up=True)
    expected = build_table([whole], tmp_path / "a", years=[2024], spacing_m=80).files
    assert build_table([right, left], tmp_path / "b", years=[2024], spacing_m=80).files == expected
    monkeypatch.setattr(rasters, "BLOCK_PIXELS", 13)
    assert build_table([whole], tmp_path / "c", years=[2024], spacing_m=80).files == expected


def test_an_area_of_several_shards_is_stitched_without_a_seam(tmp_path: Path) -> None:
    codes = random_codes(8, 1040)
    codes[:, 100:1010] = codes[:, :1]
    tile = write_raster(tmp_path / "t.tif", codes, west=WEST, north=NORTH)
    steps: list[tuple[int, int, str]] = []
    build_table([tile], tmp_path / "t", years=[2024], spacing_m=10, progress=lambda *at: steps.append(at))
    np.testing.assert_array_equal(stored(tmp_path / "t"), codes)
    assert [step for step in steps if step[2] == "building"] == [
        (0, 2, "building"),
        (1, 2, "building"),
        (2, 2, "building"),
    ]


def test_cells_lie_on_multiples_of_the_spacing_so_that_builds_line_up(tmp_path: Path) -> None:
    tile = write_raster(tmp_path / "t.tif", random_codes(10, 10), west=WEST + 110, north=NORTH - 130)
    build_table([tile], tmp_path / "t", years=[2024], spacing_m=80)
    figure = read_manifest(tmp_path / "t").figures["zones"]["utm16n"]
    assert figure["utm_bounds"] == [WEST + 80, NORTH - 240, WEST + 240, NORTH - 80]
    assert all(bound % 80 == 0 for bound in figure["utm_bounds"])


def test_points_fall_into_the_cells_of_their_zone_and_year(tmp_path: Path) -> None:
    vectors = vectors_from_codes(random_codes(1, 4)[0]).astype(np.float64)
    to_lonlat = pyproj.Transformer.from_crs(32616, 4326, always_xy=True)
    x = np.array([WEST + 5, WEST + 75, WEST + 85, WEST + 5])  # two in the first cell, one in the next, one a year later
    lon, lat = to_lonlat.transform(x, np.full(4, NORTH - 5))
    table = write_points(tmp_path / "p.csv", lat, lon, vectors, year=np.array([2023, 2023, 2023, 2024]))
    manifest = build_table([table], tmp_path / "t", spacing_m=80)
    assert manifest.figures["years"] == [2023, 2024]
    mean = vectors[:2].sum(axis=0)
    np.testing.assert_array_equal(stored(tmp_path / "t")[0, 0], codes_from_vectors(mean / np.linalg.norm(mean)))
    np.testing.assert_array_equal(stored(tmp_path / "t")[0, 1], codes_from_vectors(vectors[2]))
    np.testing.assert_array_equal(stored(tmp_path / "t", year_index=1)[0, 0], codes_from_vectors(vectors[3]))
    assert manifest.figures["zones"]["utm16n"]["valid_cells"] == {"2023": 2, "2024": 1}
    latest = AnchorTable.open(tmp_path / "t").lookup(lon, lat)
    assert latest.mask.tolist() == [True, True, False, True]
    np.testing.assert_array_equal(latest.codes[0], codes_from_vectors(vectors[3]))


def test_the_year_asked_for_is_the_only_one_taken_from_a_table_of_points(tmp_path: Path) -> None:
    vectors = vectors_from_codes(random_codes(1, 2)[0])
    table = write_points(tmp_path / "p.csv", [44.0, 44.1], [-88.0, -88.1], vectors, year=np.array([2023, 2024]))
    assert build_table([table], tmp_path / "t", years=[2023], spacing_m=80).figures["years"] == [2023]
    with pytest.raises(AnchorError, match=r"p\.csv: no points of the year 2020"):
        build_table([table], tmp_path / "u", years=[2020], spacing_m=80)


def test_the_manifest_names_sources_licence_and_credit(tmp_path: Path) -> None:
    tile = write_raster(tmp_path / "t.tif", random_codes(8, 8), west=WEST, north=NORTH)
    build_table([tile], tmp_path / "t", years=[2024], spacing_m=80)
    manifest = read_manifest(tmp_path / "t")
    assert manifest.stage == "anchors"
    assert manifest.inputs == {"t.tif": sha256_file(tile)}
    assert (manifest.settings["credit"], manifest.settings["licence"]) == (CREDIT, "CC BY 4.0")
    assert manifest.figures["zones"]["utm16n"]["coverage"] == {"2024": 1.0}
    assert manifest.figures["spacing_m"] == 80


GOOD = random_codes(8, 8)


@pytest.mark.parametrize(
    ("codes", "profile", "reason"),
    [
        (GOOD[..., :63], {}, "63 bands"),
        (GOOD, {"dtype": "int16"}, "data type int16"),
        (GOOD, {"crs": None}, "no coordinate reference system"),
        (GOOD, {"crs": "EPSG:3857"}, "must be WGS 84 / UTM"),
        (GOOD, {"crs": "EPSG:4326"}, "must be WGS 84 / UTM"),
        (GOOD, {"nodata": 0}, "nodata is 0"),
        (GOOD, {"west": WEST + 5}, "not on multiples of 10 m"),
        (np.where(GOOD == NODATA, NODATA, GOOD // 2), {}, "length 0.2"),
        (np.zeros_like(GOOD), {}, "row 0, column 0 decodes to a vector of length 0.000"),
        (np.full_like(GOOD, NODATA), {}, "every pixel is masked"),
    ],
)
def test_a_raster_that_is_not_alphaearths_is_refused_by_name_and_leaves_nothing(
    tmp_path: Path, codes: Codes, profile: dict, reason: str
) -> None:
    tile = write_raster(tmp_path / "bad.tif", codes, **({"west": WEST, "north": NORTH} | profile))
    with pytest.raises(AnchorError, match=rf"bad\.tif: .*{reason}"):
        build_table([tile], tmp_path / "t", years=[2024], spacing_m=10)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.tif"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_a_truncated_raster_is_refused_by_name_and_leaves_nothing(tmp_path: Path, share: float) -> None:
    tile = write_raster(tmp_path / "cut.tif", random_codes(64, 64), west=WEST, north=NORTH)
    data = tile.read_bytes()
    tile.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(AnchorError, match=r"cut\.tif"):
        build_table([tile], tmp_path / "t", years=[2024], spacing_m=10)
    assert [p.name for p in tmp_path.iterdir()] == ["cut.tif"]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("A07", "B07", "no column A07"),
        ("longitude", "lng", "no column longitude"),
        ("year", "when", "no column year, .*give --year"),
        ("44.0", "forty", "line 2: could not convert string to float: 'forty'"),
        ("44.0", "84.5", "line 2: latitude is out of range"),
        ("-88.0", "-188.0", "line 2: longitude is out of range"),
        ("44.0", "nan", "line 2: holds NaN"),
        ("2024", "inf", "line 2: cannot convert"),
        ("\n0,", "\n0,5", "line 2: A00..A63 is not of length 1"),
        (",44.0,-88.0,2024", "", "line 2: too few columns"),
    ],
)
def test_a_bad_table_of_points_is_refused_with_file_and_line(tmp_path: Path, old: str, new: str, reason: str) -> None:
    vectors = np.full((1, 64), 0.125)
    table = write_points(tmp_path / "bad.csv", 44.0, -88.0, vectors)
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new, 1))
    with pytest.raises(AnchorError, match=rf"bad\.csv[:,] .*{reason}"):
        build_table([table], tmp_path / "t", spacing_m=80)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.csv"]


def test_a_file_that_is_no_text_is_no_table_of_points(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_bytes(b"\xff\xfe\x00" * 50)
    with pytest.raises(AnchorError, match=r"bad\.csv"):
        build_table([tmp_path / "bad.csv"], tmp_path / "t", spacing_m=80)


def test_settings_out_of_range_and_existing_outputs_are_refused(tmp_path: Path) -> None:
    tile = write_raster(tmp_path / "t.tif", random_codes(8, 8), west=WEST, north=NORTH)
    out = tmp_path / "out"
    for sources, years, spacing, reason in (
        ([tile], [], 80, "t.tif: a raster does not say its year; give --year, or .*t.tif@YEAR"),
        ([tile], [24], 80, "year is 24"),
        ([tile], [2024], 0, "spacing is 0 m"),
        ([tile], [2024], 85, "not a multiple of its 10 m pixels"),
        ([tmp_path / "none.tif"], [2024], 80, "none.tif: no such file"),
        ([], [2024], 80, "no sources"),
    ):
        with pytest.raises(AnchorError, match=reason):
            build_table(sources, out, years=years, spacing_m=spacing)
    out.mkdir()
    with pytest.raises(OutputExistsError):
        build_table([tile], out, years=[2024], spacing_m=80)
    build_table([tile], out, years=[2024], spacing_m=80, force=True)
    assert AnchorTable.open(out).years == [2024]
