"""Look-up of a tile's anchors beside reading the same window with rasterio from the file that the table was built from.

    pytest -m slow tests/bench/test_bench_anchors.py --benchmark-columns=min,median,max,rounds

The tile is 324 nodes (18 x 18) over 504 pixels of 10 m, in the raster's CRS; table and file lie on the local disk, and
the operating system has both in its memory. `test_percentiles` prints p50 and p99 of each and their ratios.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from full_tile import BLOCK, write_full_tile

from fusar_edge.anchors.building.build import build_table
from fusar_edge.anchors.table import AnchorTable

pytestmark = pytest.mark.slow
NODES, TILE_PX, PIXEL_M, SIDE = 18, 504, 10, 2 * BLOCK
WEST, NORTH = 172320, 4014080  # of full_tile


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """0: the raster in the published layout; else spacing -> table."""
    folder = tmp_path_factory.mktemp("bench")
    found = {0: write_full_tile(folder / "tile.tif", SIDE)}
    for spacing in (10, 80):
        found[spacing] = folder / f"table{spacing}"
        build_table([found[0]], found[spacing], years=[2024], spacing_m=spacing)
    return found


def corners(count: int, seed: int = 1) -> list[tuple[int, int]]:
    """(row, column) of the first pixel of tiles."""
    dice = random.Random(seed)
    return [(dice.randrange(SIDE - TILE_PX), dice.randrange(SIDE - TILE_PX)) for _ in range(count)]


def look_up(table: AnchorTable, corner: tuple[int, int]) -> int:
    row, col = corner
    transform = (PIXEL_M, 0, WEST + PIXEL_M * col, 0, -PIXEL_M, NORTH - PIXEL_M * row)
    anchors, _ = table.lookup_tile(transform, 32617, TILE_PX, TILE_PX, NODES)
    anchors.vectors()
    return int(anchors.mask.sum())


def read_window(dataset: object, corner: tuple[int, int]) -> np.ndarray:
    """What a user would do without a table: the window, then its nodes."""
    from rasterio.windows import Window

    row, col = corner
    values = dataset.read(window=Window(col, row, TILE_PX, TILE_PX))  # type: ignore[attr-defined]
    at = np.floor(np.linspace(0.5, TILE_PX - 0.5, NODES)).astype(int)
    return values[:, at[:, None], at]


def percentiles(call: Callable[[tuple[int, int]], object], places: list[tuple[int, int]]) -> tuple[float, float]:
    """p50 and p99 in milliseconds."""
    took = []
    for place in places:
        start = time.perf_counter()
        call(place)
        took.append((time.perf_counter() - start) * 1e3)
    return float(np.percentile(took, 50)), float(np.percentile(took, 99))


@pytest.mark.parametrize("spacing", [10, 80])
def test_percentiles(files: dict[int, Path], spacing: int, capsys: pytest.CaptureFixture[str]) -> None:
    import rasterio

    table, places = AnchorTable.open(files[spacing], cache_bytes=512 << 20), corners(50)
    for place in places:
        look_up(table, place)
    warm = percentiles(lambda at: look_up(table, at), places * 40)
    uncached = AnchorTable.open(files[spacing], cache_bytes=0)
    lon, lat = cold_node(uncached)
    cold = percentiles(lambda at: uncached.lookup(lon, lat), places * 4)

    def first_time(place: tuple[int, int]) -> None:
        with rasterio.open(files[0]) as dataset:  # GDAL drops a file's decoded blocks when it is closed
            read_window(dataset, place)

    with rasterio.open(files[0]) as dataset:
        for place in places:
            read_window(dataset, place)
        cached = percentiles(lambda at: read_window(dataset, at), places * 4)
    first = percentiles(first_time, places[:20])
    with capsys.disabled():
        print(f"\n{spacing} m, p50 / p99 in ms: warm look-up {warm[0]:.3f} / {warm[1]:.3f}; one cold chunk", end=" ")
        print(f"{cold[0]:.2f} / {cold[1]:.2f}; rasterio, the file's blocks in its cache {cached[0]:.2f} /", end=" ")
        print(f"{cached[1]:.2f}, and not {first[0]:.0f} / {first[1]:.0f}; ratios of p50 to the warm look-up", end=" ")
        print(f"{cached[0] / warm[0]:.0f} and {first[0] / warm[0]:.0f}")


def cold_node(table: AnchorTable) -> tuple[list[float], list[float]]:
    """One node in the middle: one chunk."""
    bounds = table.manifest.figures["zones"]["utm17n"]["bounds"]
    return [(bounds[0] + bounds[2]) / 2], [(bounds[1] + bounds[3]) / 2]


def test_bench_warm_look_up(files: dict[int, Path], benchmark: Callable[..., object]) -> None:
    table = AnchorTable.open(files[80])
    benchmark(look_up, table, corners(1)[0])


def test_bench_rasterio_window(files: dict[int, Path], benchmark: Callable[..., object]) -> None:
    import rasterio

    with rasterio.open(files[0]) as dataset:
        benchmark(read_window, dataset, corners(1)[0])
