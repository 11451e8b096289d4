from __future__ import annotations

import csv
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
from alphaearth_files import random_codes, write_points

from fusar_edge.anchors.codes import BAND_NAMES, codes_from_sums, codes_from_vectors, vectors_from_codes
from fusar_edge.anchors.per_image import read_anchor_file, write_anchor_file
from fusar_edge.anchors.sources.points import PointSource, read_points
from fusar_edge.anchors.sources.source import Cells, Layer, Sums
from fusar_edge.errors import AnchorError

CODES = random_codes(1, 6, seed=4)[0]
VECTORS = vectors_from_codes(CODES).astype(np.float64)
LON, LAT = np.array([-88.0, -88.01, -90.01, 10.0, 179.99, -88.0]), np.array([44.0, 44.01, 44.0, -0.5, 5.0, 44.3])
ZONES = ("utm16n", "utm16n", "utm15n", "utm32s", "utm60n", "utm16n")


def in_cells(spacing_m: int = 20) -> dict[tuple[str, int, int], np.ndarray]:
    """(zone, column, row) -> codes, by pyproj and without the code under test."""
    cells = {}
    for lon, lat, zone, codes in zip(LON, LAT, ZONES, CODES, strict=True):
        epsg = (32600 if zone[-1] == "n" else 32700) + int(zone[3:5])
        x, y = pyproj.Transformer.from_crs(4326, epsg, always_xy=True).transform(lon, lat)
        cells[zone, int(x // spacing_m), int(y // spacing_m)] = codes
    return cells


def cells_of(source: PointSource, year: int) -> dict[tuple[str, int, int], np.ndarray]:
    assert {layer.year for layer in source.points} == {year}
    return {
        (layer.zone, int(col), int(row)): codes
        for layer, columns in source.points.items()
        for col, row, codes in zip(*columns, strict=True)
    }


def assert_holds_the_points(source: PointSource, year: int = 2024) -> None:
    found, expected = cells_of(source, year), in_cells()
    assert found.keys() == expected.keys()
    for cell, codes in expected.items():
        np.testing.assert_array_equal(found[cell], codes)


def write_geo(path: Path, *, index: Callable[[int], str], **columns: Any) -> Path:
    """As Earth Engine exports points that were sampled with geometries: system:index, A00..A63, .geo."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["system:index", *BAND_NAMES, *columns, ".geo"])
        for i, vector in enumerate(VECTORS):
            geo = json.dumps({"geodesic": False, "type": "Point", "coordinates": [LON[i], LAT[i]]})
            writer.writerow([index(i), *(repr(float(v)) for v in vector), *(c[i] for c in columns.values()), geo])
    return path


def structured(**extra: Any) -> np.ndarray:
    names = ["lon", "lat", "row", "col", "x", "y", *BAND_NAMES, *extra]
    array = np.zeros(len(CODES), dtype=[(name, np.float64) for name in names])
    array["lon"], array["lat"] = LON, LAT
    for band, name in enumerate(BAND_NAMES):
        array[name] = VECTORS[:, band]
    return array


def test_a_table_with_latitude_and_longitude_fills_its_cells(tmp_path: Path) -> None:
    source = read_points(write_points(tmp_path / "p.csv", LAT, LON, VECTORS), year=None, spacing_m=20)
    assert_holds_the_points(source)
    assert source.location == str(tmp_path / "p.csv")


@pytest.mark.parametrize("column", [True, False])
def test_a_table_with_geo_alone_takes_the_year_from_its_column_or_is_given_it(tmp_path: Path, column: bool) -> None:
    columns = {"year": ["2024.0"] * 6} if column else {}
    table = write_geo(tmp_path / "p.csv", index=str, **columns)
    assert_holds_the_points(read_points(table, year=None if column else 2024, spacing_m=20))


def test_a_year_that_begins_system_index_is_taken_and_chosen_by(tmp_path: Path) -> None:
    table = write_geo(tmp_path / "p.csv", index=lambda i: f"{2024 - i // 5}_{i:020d}_0")
    source = read_points(table, year=None, spacing_m=20)
    assert {layer.year for layer in source.points} == {2023, 2024}
    chosen = read_points(table, year=2023, spacing_m=20)
    assert sum(len(columns[0]) for columns in chosen.points.values()) == 1


def test_a_counter_in_system_index_is_no_year(tmp_path: Path) -> None:
    table = write_geo(tmp_path / "p.csv", index=lambda i: f"{2021 + i}")
    with pytest.raises(AnchorError, match=r"p\.csv: no column year, and no system:index .*; give --year"):
        read_points(table, year=None, spacing_m=20)
    assert_holds_the_points(read_points(table, year=2024, spacing_m=20))


def test_a_later_row_without_the_year_is_named(tmp_path: Path) -> None:
    table = write_geo(tmp_path / "p.csv", index=lambda i: f"{2024 if i < 3 else 3}_{i}")
    with pytest.raises(AnchorError, match=r"p\.csv, line 5: system:index is '3_3' and does not begin with a year"):
        read_points(table, year=None, spacing_m=20)


@pytest.mark.parametrize(
    "geo",
    [
        '{"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]}',
        "",
        "[1, 2]",
        '{"type": "Point"}',
        '{"type": "Feature", "coordinates": [1, 2]}',
    ],
)
def test_a_geometry_that_is_no_point_is_named_by_its_line(tmp_path: Path, geo: str) -> None:
    lines = write_geo(tmp_path / "p.csv", index=str).read_text().splitlines()
    quoted = geo.replace('"', '""')
    (tmp_path / "p.csv").write_text(
        "\n".join([*lines[:3], f'{lines[3].partition(",")[0]},{",".join(["0.125"] * 64)},"{quoted}"'])
    )
    with pytest.raises(AnchorError, match=r"p\.csv, line 4: \.geo is .*no GeoJSON Point: sample with geometries=True"):
        read_points(tmp_path / "p.csv", year=2024, spacing_m=20)


def test_columns_that_are_missing_are_named(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(",".join([*BAND_NAMES[:-1], "latitude"]) + "\n1,2\n")
    with pytest.raises(
        AnchorError, match=r"no column A63, longitude; needed are A00\.\.A63, and latitude and longitude or"
    ):
        read_points(tmp_path / "p.csv", year=2024, spacing_m=20)


@pytest.mark.parametrize("bad", ["x", "nan", ""])
def test_a_value_that_is_no_number_is_named_by_its_line(tmp_path: Path, bad: str) -> None:
    lines = write_points(tmp_path / "p.csv", LAT, LON, VECTORS).read_text().splitlines()
    lines[2] = ",".join(["1", bad, *lines[2].split(",")[2:]])
    (tmp_path / "p.csv").write_text("\n".join(lines))
    with pytest.raises(AnchorError, match=r"p\.csv, line 3: "):
        read_points(tmp_path / "p.csv", year=2024, spacing_m=20)


@pytest.mark.parametrize("form", ["fields", "columns", "flat"])
def test_a_per_image_npy_is_a_table_of_points_of_the_year_given(tmp_path: Path, form: str) -> None:
    array = structured()
    table = np.array(array.tolist())
    np.save(tmp_path / "a.npy", {"fields": array, "columns": table, "flat": table.ravel()}[form])
    assert_holds_the_points(read_points(tmp_path / "a.npy", year=2024, spacing_m=20))
    assert len(read_anchor_file(tmp_path / "a.npy").features) == 6
    with pytest.raises(AnchorError, match=r"a\.npy: a per-image file does not say its year; give --year"):
        read_points(tmp_path / "a.npy", year=None, spacing_m=20)


def test_vectors_of_zeros_in_a_per_image_npy_are_left_out(tmp_path: Path) -> None:
    array = structured()
    for name in BAND_NAMES:
        array[name][2] = 0
    np.save(tmp_path / "a.npy", array)
    expected = {cell for cell in in_cells() if cell[0] != "utm15n"}
    assert cells_of(read_points(tmp_path / "a.npy", year=2024, spacing_m=20), 2024).keys() == expected
    np.save(tmp_path / "a.npy", np.zeros((3, 70)))
    with pytest.raises(AnchorError, match=r"a\.npy: no points"):
        read_points(tmp_path / "a.npy", year=2024, spacing_m=20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a[["row", "col", *BAND_NAMES]], r"no fields lon and lat"),
        (lambda a: np.array(a.tolist())[:, :69], r"shape \(6, 69\)"),
        (lambda a: np.array(a.tolist()) * ([1, 10] + [1] * 68), r"row 0: latitude is out of range"),
        (lambda a: np.array(a.tolist()) * ([1] * 6 + [2] * 64), r"row 0: A00\.\.A63 is not of length 1"),
        (lambda a: np.array(a.tolist(), dtype="U32"), r"features are of type <U32"),
    ],
)
def test_a_per_image_npy_that_cannot_be_placed_is_named(tmp_path: Path, change: Any, message: str) -> None:
    np.save(tmp_path / "a.npy", change(structured()))
    with pytest.raises(AnchorError, match=rf"a\.npy.*{message}"):
        read_points(tmp_path / "a.npy", year=2024, spacing_m=20)


def test_a_per_image_npz_is_refused_because_it_has_no_coordinates(tmp_path: Path) -> None:
    write_anchor_file(tmp_path / "a.npz", VECTORS, np.zeros((6, 2)))
    with pytest.raises(AnchorError, match=r"a\.npz: a per-image \.npz holds no coordinates .*; give the \.npy"):
        read_points(tmp_path / "a.npz", year=2024, spacing_m=20)


def test_a_part_holds_what_lies_in_the_window_and_travels(tmp_path: Path) -> None:
    source = read_points(write_points(tmp_path / "p.csv", LAT, LON, VECTORS), year=None, spacing_m=20)
    layer = Layer("utm16n", 2024)
    box = source.layers()[layer]
    window = Cells(box.col0, box.row0, box.col1, box.row1 - 1)  # without the northernmost point
    part = source.part(layer, window)
    assert part is not None
    assert list(part.points) == [layer]
    assert len(part.points[layer][0]) == 2
    sent = pickle.loads(pickle.dumps(part))
    shape = (window.row1 - window.row0, window.col1 - window.col0)
    whole, cut = (Sums(np.zeros((*shape, 64), np.int32), np.zeros(shape, np.int32)) for _ in range(2))
    source.add_to(whole, layer, window)
    sent.add_to(cut, layer, window)
    assert whole.counts.sum() == 2
    np.testing.assert_array_equal(whole.squares, cut.squares)
    np.testing.assert_array_equal(codes_from_sums(*whole)[whole.counts == 1], codes_from_vectors(VECTORS[[1, 0]]))
    assert source.part(Layer("utm16n", 2023), window) is None
    assert source.part(layer, Cells(0, 0, 5, 5)) is None


def test_the_places_in_geo_and_in_the_columns_of_a_real_export_agree(real_data: Path, tmp_path: Path) -> None:
    [table] = (real_data / "aef").glob("*sf_bay*.csv")
    with open(table, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with open(tmp_path / "geo.csv", "w", encoding="utf-8", newline="") as file:
        names = ["system:index", *BAND_NAMES, ".geo"]
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    first, second = (
        read_points(table, year=None, spacing_m=10),
        read_points(tmp_path / "geo.csv", year=2024, spacing_m=10),
    )
    assert first.points.keys() == second.points.keys()
    for layer, columns in first.points.items():
        for a, b in zip(columns, second.points[layer], strict=True):
            np.testing.assert_array_equal(a, b)
