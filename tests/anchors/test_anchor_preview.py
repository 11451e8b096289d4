from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyproj
import pytest
from PIL import Image

from fusar_edge.anchors.areas.area import area_from_bounds
from fusar_edge.anchors.building.build import build_table
from fusar_edge.anchors.codes import CREDIT, NODATA
from fusar_edge.anchors.layout import CHUNK, FORMAT, create_root, create_zone
from fusar_edge.anchors.preview import (
    CHUNKS_AT_ONCE,
    Grid,
    _blocks,
    _every,
    coloured,
    fitted_components,
    write_preview,
)
from fusar_edge.anchors.sources.source import Cells
from fusar_edge.anchors.table import AnchorTable
from fusar_edge.anchors.zones import lonlat_bounds, projection
from fusar_edge.errors import AnchorError, OutputExistsError
from fusar_edge.manifest import Manifest, folder_hashes, write_manifest
from tests.anchors.alphaearth_files import random_codes, write_raster

WEST, NORTH = 358_400, 4_907_520


def two_fields(rows: int = 60, cols: int = 80) -> npt.NDArray[np.int8]:
    """The west half one kind of vector, the east half another, the south-east corner masked."""
    codes = random_codes(rows, cols, seed=1)
    near, far = random_codes(1, 1, seed=2)[0, 0], random_codes(1, 1, seed=3)[0, 0]
    codes[:, : cols // 2], codes[:, cols // 2 :] = near, far
    codes[rows // 2 :, cols // 2 :] = NODATA
    return codes


def table_of(folder: Path, codes: npt.NDArray[np.int8], **options: Any) -> AnchorTable:
    source = write_raster(folder / "tile.tif", codes, west=WEST, north=NORTH)
    build_table([source], folder / "t", years=[2024], spacing_m=10, jobs=1, **options)
    return AnchorTable.open(folder / "t")


def baked_table(folder: Path, codes: npt.NDArray[np.int8]) -> AnchorTable:
    """codes [rows, cols, bands]"""
    rows, cols, bands = codes.shape
    root = create_root(folder, 10, ["utm16n"], scale=[0.01 * (band + 1) for band in range(bands)])
    box = Cells(WEST // 10, NORTH // 10 - rows, WEST // 10 + cols, NORTH // 10)
    create_zone(root, "utm16n", box, [2024], 10, bands=bands)[0] = codes
    bounds = lonlat_bounds("utm16n", *(v * 10 for v in box))
    manifest = Manifest(stage="anchors", files=folder_hashes(folder))
    manifest.figures = {"zones": {"utm16n": {"bounds": bounds}}}
    manifest.settings = {"format": FORMAT, "credit": CREDIT, "licence": "CC BY 4.0"}
    write_manifest(folder, manifest)
    return AnchorTable.open(folder)


def pixels(path: Path) -> npt.NDArray[np.uint8]:
    with Image.open(path) as image:
        assert image.mode == "RGBA"
        return np.asarray(image)


def test_every_pixel_shows_the_anchor_it_lies_on(tmp_path: Path) -> None:
    codes = two_fields()
    result = write_preview(table_of(tmp_path, codes), tmp_path / "p.png", width_px=120)
    west, south, east, north = result["bounds"]
    picture = pixels(tmp_path / "p.png")
    assert picture.shape == (result["height"], result["width"], 4)
    lon = west + (np.arange(120) + 0.5) / 120 * (east - west)
    lat = north - (np.arange(result["height"]) + 0.5) / result["height"] * (north - south)
    x, y = projection("utm16n").transform(*np.meshgrid(lon, lat))
    col, row = (x - WEST) / 10, (NORTH - y) / 10
    inner = (np.abs(col - np.rint(col)) > 0.01) & (np.abs(row - np.rint(row)) > 0.01)  # bounds are rounded
    inside = (col > 0) & (col < 80) & (row > 0) & (row < 60)
    kind = codes[row.astype(int).clip(0, 59), col.astype(int).clip(0, 79)]
    valid = inside & (kind[..., 0] != NODATA)
    np.testing.assert_array_equal((picture[..., 3] == 255)[inner], valid[inner])
    assert not picture[picture[..., 3] == 0].any()
    sides = [{tuple(v) for v in picture[inner & valid & side].tolist()} for side in (col < 40, col > 40)]
    assert [len(colours) for colours in sides] == [1, 1]
    assert sides[0] != sides[1]
    assert all(colour[1:] == (128, 128, 255) for colours in sides for colour in colours)  # rounding is no component
    assert result["explained_variance"] == [1.0, 0.0, 0.0]
    assert result["found"] == int((picture[..., 3] == 255).sum())
    assert result["masked"] == int((inside & ~valid)[inner].sum()) + int((inside & ~valid)[~inner].sum())


def test_pixels_are_square_on_the_ground(tmp_path: Path) -> None:
    result = write_preview(table_of(tmp_path, random_codes(40, 120)), tmp_path / "p.png", width_px=240)
    west, south, east, north = result["bounds"]
    geod, middle = pyproj.Geod(ellps="WGS84"), (south + north) / 2
    across, down = geod.inv(west, middle, east, middle)[2], geod.inv(west, south, west, north)[2]
    assert across / 240 == pytest.approx(down / result["height"], rel=0.01)


def test_components_are_those_of_a_singular_value_decomposition() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(500, 64)) * np.geomspace(3, 0.1, 64) + rng.normal(size=64)
    found = fitted_components(vectors)
    _, sizes, axes = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(found.axes.T @ axes[:3].T), np.eye(3), atol=1e-8)
    np.testing.assert_allclose(found.explained, (sizes**2 / (sizes**2).sum())[:3])
    assert (found.axes[np.abs(found.axes).argmax(axis=0), range(3)] > 0).all()
    colours = coloured(vectors, found)
    for channel in range(3):
        assert (colours[:, channel] == 0).sum() == pytest.approx(10, abs=3)
        assert (colours[:, channel] == 255).sum() == pytest.approx(10, abs=3)


def test_vectors_without_variance_are_grey() -> None:
    same = np.ones((5, 64)) / 8
    assert coloured(same, fitted_components(same)).tolist() == [[128] * 3] * 5
    assert fitted_components(same).explained == [0, 0, 0]
    assert fitted_components(np.random.default_rng(0).normal(size=(9, 2))).axes.shape == (2, 3)


def test_the_fitted_vectors_are_evenly_spread_over_the_blocks() -> None:
    codes = np.arange(100, dtype=np.int8)[:, None]
    blocks = np.split(codes, [0, 1, 17, 17, 40, 98])
    for stride in (1, 2, 7, 60):
        np.testing.assert_array_equal(_every(stride, blocks), codes[::stride])


def test_a_picture_is_the_same_every_time_and_says_where_it_comes_from(tmp_path: Path) -> None:
    table = table_of(tmp_path, random_codes(70, 70, masked=0.3))
    steps: list[tuple[int, int]] = []
    result = write_preview(table, tmp_path / "a.png", width_px=64, progress=lambda *step: steps.append(step))
    write_preview(AnchorTable.open(table.path), tmp_path / "b.png", width_px=64)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert steps[-1] == (64 * result["height"],) * 2
    with Image.open(tmp_path / "a.png") as image:
        texts = image.text  # type: ignore[attr-defined]  # of PngImageFile
    assert CREDIT in texts["Copyright"]
    assert texts["Year"] == "2024"
    assert json.loads(texts["Bounds"]) == result["bounds"]
    assert texts["Spacing"] == "10 m"
    assert json.loads(json.dumps(result)) == result


def test_bounds_choose_a_part(tmp_path: Path) -> None:
    table = table_of(tmp_path, two_fields())
    lon, lat = projection("utm16n").transform([WEST + 100, WEST + 300], [NORTH - 400, NORTH - 200], direction="INVERSE")
    bounds = [lon[0], lat[0], lon[1], lat[1]]
    result = write_preview(table, tmp_path / "p.png", bounds=bounds, width_px=32)
    np.testing.assert_allclose(result["bounds"], bounds, atol=1e-6)
    assert (pixels(tmp_path / "p.png")[..., 3] == 255).all()
    assert (pixels(tmp_path / "p.png")[..., :3] == 128).all()  # one kind of vector


def test_a_table_of_an_area_is_shown_within_it(tmp_path: Path) -> None:
    lon, lat = projection("utm16n").transform([WEST + 200, WEST + 500], [NORTH - 400, NORTH - 200], direction="INVERSE")
    area = area_from_bounds(lon[0], lat[0], lon[1], lat[1])
    result = write_preview(table_of(tmp_path, two_fields(), area=area), tmp_path / "p.png", width_px=32)
    np.testing.assert_allclose(result["bounds"], area.bounds, atol=1e-6)


def test_two_zones_on_the_antimeridian_are_one_picture(tmp_path: Path) -> None:
    files = []
    for crs, lon in (("EPSG:32660", 179.99), ("EPSG:32601", -179.995)):
        zone = "utm60n" if crs.endswith("60") else "utm01n"
        west, north = (round(v / 10) * 10 for v in projection(zone).transform(lon, 60.0))
        files.append(write_raster(tmp_path / f"{zone}.tif", random_codes(40, 30), west=west, north=north, crs=crs))
    build_table(files, tmp_path / "t", years=[2024], spacing_m=10, jobs=1)
    result = write_preview(AnchorTable.open(tmp_path / "t"), tmp_path / "p.png", width_px=200)
    west, _, east, _ = result["bounds"]
    assert west == pytest.approx(179.99, abs=2e-3)
    assert east == pytest.approx(-179.99, abs=2e-3)
    alpha = pixels(tmp_path / "p.png")[..., 3] == 255
    middle = alpha[alpha.shape[0] // 2]
    assert middle[10:40].all()
    assert not middle[90:110].any()
    assert middle[160:190].all()


def test_a_baked_table_has_a_picture_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(-127, 128, size=(30, 40, 5)).astype(np.int8)
    codes[:10] = NODATA
    table = baked_table(tmp_path / "baked", codes)
    result = write_preview(table, tmp_path / "p.png", width_px=40)
    assert table.scale is not None
    variance = np.sort((codes[10:].reshape(-1, 5) * table.scale).var(axis=0))[::-1]
    np.testing.assert_allclose(result["explained_variance"], (variance / variance.sum())[:3], atol=0.03)
    assert not pixels(tmp_path / "p.png")[:8, :, 3].any()
    assert pixels(tmp_path / "p.png")[12:28, 4:36, 3].all()


@pytest.mark.parametrize("metres_per_px", [0.5, 8, 90, 700, 3000])
@pytest.mark.parametrize("width", [16, 1000, 4096])
def test_a_look_up_holds_a_bounded_number_of_chunks(metres_per_px: float, width: int) -> None:
    step = metres_per_px / 111_320
    grid = Grid(0.0, 1.0, step, step, width, 300)
    seen = 0
    for block in _blocks(grid, 10):
        row, col = np.divmod(block, width)
        chunk = [np.floor(v * metres_per_px / (10 * CHUNK)).astype(int) for v in (row, col)]
        assert len(np.unique(chunk[0] * 100_000 + chunk[1])) <= CHUNKS_AT_ONCE + 4
        assert block[0] == seen
        seen = int(block[-1]) + 1
        if len(block) < 16 and seen > 5000:
            break
    else:
        assert seen == width * 300


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"year": 2019}, "has no year 2019; it holds 2024"),
        ({"bounds": [0, 0, 1, 1]}, "no vector of 2024 within 0,0,1,1"),
        ({"bounds": [0, 1, 1, 1]}, "south must be less"),
        ({"bounds": [0, 1]}, "give west,south,east,north"),
        ({"width_px": 8}, "width is 8 px"),
        ({"width_px": 100_000}, "width is 100000 px"),
        ({"bounds": [-88.77, 40, -88.76, 50]}, "give a width of at most"),
    ],
)
def test_a_picture_that_cannot_be_made_is_refused(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    table = table_of(tmp_path, random_codes(20, 20))
    with pytest.raises(AnchorError, match=reason):
        write_preview(table, tmp_path / "out" / "p.png", **options)
    assert not list(tmp_path.rglob("*.png"))


def test_an_output_that_exists_or_is_no_png_is_refused(tmp_path: Path) -> None:
    table = table_of(tmp_path, random_codes(20, 20))
    (tmp_path / "p.png").write_bytes(b"mine")
    with pytest.raises(OutputExistsError, match="--force"):
        write_preview(table, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes() == b"mine"
    with pytest.raises(AnchorError, match=r"p\.jpg: the picture is a PNG"):
        write_preview(table, tmp_path / "p.jpg")
    write_preview(table, tmp_path / "p.png", width_px=16, force=True)
    assert pixels(tmp_path / "p.png").shape[1] == 16
