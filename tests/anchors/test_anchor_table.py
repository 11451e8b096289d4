from __future__ import annotations

import json
import random
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyproj
import pytest
from alphaearth_files import random_codes, write_points, write_raster

from fusar_edge.anchors.building.build import build_table
from fusar_edge.anchors.cache import ChunkCache
from fusar_edge.anchors.codes import NODATA, codes_from_vectors, vectors_from_codes
from fusar_edge.anchors.table import AnchorTable
from fusar_edge.anchors.verify import verify_table
from fusar_edge.errors import AnchorError

WEST, NORTH, SIZE = 358400, 4906560, 150  # 150 x 150 cells of 10 m: nine chunks
TO_LONLAT = pyproj.Transformer.from_crs(32616, 4326, always_xy=True)
CODES = random_codes(SIZE, SIZE, masked=0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of one year at 10 m."""
    work = tmp_path_factory.mktemp("anchors")
    tile = write_raster(work / "t.tif", CODES, west=WEST, north=NORTH)
    build_table([tile], work / "table", years=[2024], spacing_m=10)
    return work / "table"


def lonlat(row: np.ndarray, col: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of fractional cell coordinates."""
    return TO_LONLAT.transform(WEST + 10 * np.asarray(col, float), NORTH - 10 * np.asarray(row, float))


def test_every_node_gets_the_codes_of_the_cell_it_lies_in(folder: Path) -> None:
    rng = np.random.default_rng(3)
    row, col = rng.uniform(0, SIZE, 500), rng.uniform(0, SIZE, 500)
    anchors = AnchorTable.open(folder).lookup(*lonlat(row, col), 2024)
    expected = CODES[row.astype(int), col.astype(int)]
    np.testing.assert_array_equal(anchors.codes, expected)
    np.testing.assert_array_equal(anchors.mask, expected[:, 0] != NODATA)
    np.testing.assert_array_equal(anchors.vectors(), vectors_from_codes(expected))
    assert anchors.counts == {
        "outside": 0, "no_year": 0, "masked": int((~anchors.mask).sum()), "found": int(anchors.mask.sum()),
    }  # fmt: skip


def test_rasterio_samples_the_same_codes(folder: Path) -> None:
    import rasterio

    lon, lat = lonlat(np.arange(0.3, SIZE, 7), np.arange(0.8, SIZE, 7))
    with rasterio.open(folder.parent / "t.tif") as dataset:
        expected = np.array(list(dataset.sample(zip(*TO_LONLAT.transform(lon, lat, direction="INVERSE"), strict=True))))
    np.testing.assert_array_equal(AnchorTable.open(folder).lookup(lon, lat).codes, expected)


def test_nothing_missing_raises_and_every_reason_is_counted(folder: Path) -> None:
    table = AnchorTable.open(folder)
    masked_row, masked_col = np.argwhere(CODES[..., 0] == NODATA)[0]
    lon, lat = lonlat([masked_row + 0.5], [masked_col + 0.5])
    lon = np.array([*lon, 0.0, -88.7, np.nan, np.inf, 900.0, -88.7])
    lat = np.array([*lat, 44.0, 89.9, 44.0, 44.0, 44.0, -95.0])
    anchors = table.lookup(lon, lat, 2024)
    assert anchors.counts == {"outside": 6, "no_year": 0, "masked": 1, "found": 0}
    assert not anchors.mask.any()
    assert (anchors.codes == NODATA).all()
    assert (anchors.vectors() == 0).all()
    assert table.lookup([], [], 2024).counts == {"outside": 0, "no_year": 0, "masked": 0, "found": 0}


def test_a_year_that_the_table_lacks_is_counted_and_none_means_the_latest(folder: Path) -> None:
    table, node = AnchorTable.open(folder), lonlat([4.5], [5.5])
    assert table.lookup(*node, 2019).counts["no_year"] == 1
    np.testing.assert_array_equal(table.lookup(*node).codes, table.lookup(*node, 2024).codes)
    assert table.lookup([0.0], [0.0], 2019).counts["outside"] == 1


def test_a_longitude_beyond_180_is_the_same_place(folder: Path) -> None:
    lon, lat = lonlat([4.5], [5.5])
    table = AnchorTable.open(folder)
    np.testing.assert_array_equal(table.lookup(lon + 360, lat).codes, table.lookup(lon, lat).codes)


def test_nodes_on_both_sides_of_a_zone_edge_and_of_the_equator_are_found(tmp_path: Path) -> None:
    lon = np.array([-90.01, -89.99, -89.99, 179.99, -179.99])
    lat = np.array([44.0, 44.0, -0.01, 10.0, 10.0])
    vectors = vectors_from_codes(random_codes(1, len(lon))[0])
    points = write_points(tmp_path / "p.csv", lat, lon, vectors)
    manifest = build_table([points], tmp_path / "t", spacing_m=80)
    assert set(manifest.figures["zones"]) == {"utm01n", "utm15n", "utm16n", "utm16s", "utm60n"}
    anchors = AnchorTable.open(tmp_path / "t").lookup(lon, lat, 2024)
    assert anchors.counts["found"] == len(lon)
    np.testing.assert_array_equal(anchors.codes, codes_from_vectors(vectors))


def test_a_shard_without_a_vector_has_no_file_and_reads_as_masked(tmp_path: Path) -> None:
    x, y = np.array([WEST, WEST + 600 * 80]), np.array([NORTH - 40.0] * 2)
    lon, lat = TO_LONLAT.transform(np.append(x, x.mean()) + 40, np.append(y, y[0] - 700 * 80))
    points = write_points(tmp_path / "p.csv", lat, lon, vectors_from_codes(random_codes(1, 3)[0]))
    manifest = build_table([points], tmp_path / "t", spacing_m=80)
    assert sum("/codes/c/" in name for name in manifest.files) == 3
    empty = TO_LONLAT.transform(WEST + 590 * 80, NORTH - 690 * 80)
    assert AnchorTable.open(tmp_path / "t").lookup([empty[0]], [empty[1]]).counts["masked"] == 1
    assert verify_table(tmp_path / "t") == {"files": len(manifest.files), "shards": 3, "valid_cells": 3}


@pytest.mark.parametrize("cache_bytes", [0, 300_000, 1 << 26])
def test_threads_and_small_caches_do_not_change_the_answer(folder: Path, cache_bytes: int) -> None:
    table = AnchorTable.open(folder, cache_bytes=cache_bytes)
    row, col = (v.ravel() for v in np.meshgrid(np.arange(0.5, SIZE, 12), np.arange(0.5, SIZE, 12)))
    expected = CODES[row.astype(int), col.astype(int)]
    with ThreadPoolExecutor(4) as pool:
        for anchors in pool.map(lambda _: table.lookup(*lonlat(row, col), 2024), range(8)):
            np.testing.assert_array_equal(anchors.codes, expected)
    assert table.cache.used_bytes <= cache_bytes


def test_a_second_look_up_reads_nothing_from_disk(folder: Path) -> None:
    table = AnchorTable.open(folder)
    nodes = lonlat(np.linspace(0.5, 149.5, 30), np.linspace(0.5, 149.5, 30))
    table.lookup(*nodes)
    misses = table.cache.misses
    table.lookup(*nodes)
    assert (misses, table.cache.misses, table.cache.hits) == (3, 3, 3)


def test_the_cache_drops_the_chunk_that_was_used_longest_ago() -> None:
    cache, chunk = ChunkCache(250), np.zeros(100, dtype=np.int8)
    cache.put("a", chunk)
    cache.put("b", chunk)
    cache.get_many(["a"])
    cache.put("c", chunk)
    assert [found is not None for found in cache.get_many(["a", "b", "c"])] == [True, False, True]
    assert cache.used_bytes == 200


def test_arrays_of_different_length_are_refused(folder: Path) -> None:
    with pytest.raises(AnchorError, match="same length"):
        AnchorTable.open(folder).lookup([1.0, 2.0], [1.0])


def flipped(folder: Path, name: str, at: int, bit: int) -> bytes:
    data = bytearray((folder / name).read_bytes())
    data[at] ^= 1 << bit
    (folder / name).write_bytes(data)
    return bytes(data)


def test_a_flipped_bit_of_any_file_is_found_and_named(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    intact = AnchorTable.open(folder)
    nodes = tuple(v for v in lonlat(*(v.ravel() for v in np.meshgrid(np.arange(0.5, 150, 5), np.arange(0.5, 150, 5)))))
    expected, dice = intact.lookup(*nodes).codes, random.Random(5)
    for name in intact.manifest.files:
        original = (copy / name).read_bytes()
        for _ in range(12 if "/c/0/0" in name else 3):
            flipped(copy, name, dice.randrange(len(original)), dice.randrange(8))
            with pytest.raises(AnchorError, match=name):
                verify_table(copy)
            try:  # the look-up alone: refused, or the flip lies in a part that it does not need
                np.testing.assert_array_equal(AnchorTable.open(copy).lookup(*nodes).codes, expected)
            except AnchorError as problem:
                assert name in str(problem)  # noqa: PT017  (both outcomes are right)
            (copy / name).write_bytes(original)
    assert verify_table(copy)["valid_cells"] == int((CODES[..., 0] != NODATA).sum())


def test_chunks_and_shard_indices_end_with_a_checksum(folder: Path) -> None:
    [sharding] = json.loads((folder / "utm16n/codes/zarr.json").read_text())["codecs"]
    codecs = {key: [codec["name"] for codec in sharding["configuration"][key]] for key in ("codecs", "index_codecs")}
    assert codecs == {"codecs": ["transpose", "bytes", "zstd", "crc32c"], "index_codecs": ["bytes", "crc32c"]}
    assert sharding["configuration"]["chunk_shape"] == [1, 64, 64, 64]


def test_a_shard_that_is_cut_or_gone_raises_instead_of_reading_as_masked(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    shard = tmp_path / "copy" / "utm16n/codes/c/0/0/0/0"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(AnchorError, match="0/0/0/0 is damaged"):
        AnchorTable.open(tmp_path / "copy").lookup(*lonlat([5], [5]))
    shard.unlink()
    with pytest.raises(AnchorError, match="0/0/0/0 is missing"):
        AnchorTable.open(tmp_path / "copy").lookup(*lonlat([5], [5]))
    with pytest.raises(AnchorError, match="0/0/0/0 is missing"):
        verify_table(tmp_path / "copy")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"spacing_m": 10', '"spacing_m": 20', "it states spacing_m 20, the table has 10"),
        ("Google DeepMind", "Nobody", "it states credit"),
        ('"stage": "anchors"', '"stage": "build"', "is no anchor table"),
        ('"stage"', '"sage"', "manifest.json: "),
    ],
)
def test_a_changed_manifest_is_found(folder: Path, tmp_path: Path, old: str, new: str, reason: str) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    path = tmp_path / "copy" / "manifest.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(AnchorError, match=r"manifest\.json( was changed: it is not what its seal says|: )"):
        AnchorTable.open(tmp_path / "copy")
    path.write_text(re.sub('"seal": "[0-9a-f]*"', '"seal": ""', path.read_text()))  # as somebody who means it would
    with pytest.raises(AnchorError, match=reason):
        verify_table(tmp_path / "copy")


def test_no_byte_of_the_manifest_can_change_unseen(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    path, dice = tmp_path / "copy" / "manifest.json", random.Random(6)
    original, manifest = path.read_bytes(), AnchorTable.open(folder).manifest
    for _ in range(400):
        data = bytearray(original)
        data[dice.randrange(len(data))] ^= dice.randrange(1, 256)
        path.write_bytes(data)
        try:
            assert AnchorTable.open(tmp_path / "copy").manifest == manifest  # white space between two fields
        except AnchorError as problem:
            assert "manifest.json" in str(problem)  # noqa: PT017


def test_a_file_that_the_manifest_does_not_list_is_found(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "utm16n" / "extra").write_text("x")
    with pytest.raises(AnchorError, match="extra is not listed"):
        verify_table(tmp_path / "copy")


def test_a_folder_that_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AnchorError, match=r"has no manifest\.json"):
        AnchorTable.open(tmp_path)


def test_xarray_opens_a_zone_with_its_coordinates(folder: Path) -> None:
    xarray = pytest.importorskip("xarray")
    with xarray.open_zarr(folder, group="utm16n", consolidated=False, chunks=None) as dataset:
        codes = dataset["codes"]
        assert codes.dims == ("year", "y", "x", "band")
        assert codes.dtype == np.int8
        picked = codes.sel(year=2024).sel(x=WEST + 57, y=NORTH - 33, method="nearest")
        np.testing.assert_array_equal(picked.values, CODES[3, 5])
        assert "UTM zone 16N" in dataset["spatial_ref"].attrs["crs_wkt"]


def test_importing_the_package_loads_no_heavy_library() -> None:
    import subprocess

    code = (
        "import sys\n"
        "from fusar_edge.anchors import cli, per_image, preview, table, verify\n"
        "from fusar_edge.anchors.building import build\n"
        "from fusar_edge.anchors.planning import plan\n"
        "from fusar_edge.anchors.sources import index, points, rasters\n"
        "print([m for m in ('rasterio', 'zarr', 'pyproj', 'torch', 'onnx', 'transformers') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
