"""The hot paths, one thread: tile read, anchor look-up, vision, prefix, prefill, decode step, parse, a whole scene."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusar_edge.data.tasks import parse_answer
from fusar_edge.runtime.bundle import DEFAULT, Bundle, open_bundle
from fusar_edge.runtime.generate import run_prefix
from fusar_edge.runtime.interpreter import interpret
from fusar_edge.runtime.session import Session
from fusar_edge.sar.scene import Scene, open_scene
from fusar_edge.sar.tiles import TileWindow, plan_tiles

SIDE, TILE_PX, NODES, SPACING_M = 944, 504, 9, 80
"""Scene of two by two tiles; anchors of a tile; their spacing."""
PAST = 200
"""Tokens in the cache at a decode step: image, prompt, some of an answer."""
WEST, NORTH, PIXEL_M, EPSG = 450_000.0, 4_200_000.0, 10.0, 32616

Benchmark = Callable[..., Any]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    if not (DEFAULT / "manifest.json").is_file():
        pytest.skip("this checkout holds no default bundle")
    return open_bundle("default")


@pytest.fixture(scope="module")
def session(bundle: Bundle) -> Session:
    opened = Session(bundle, threads=1)
    size = bundle.settings.image_size
    opened.look(np.random.default_rng(0).random((size, size), np.float32))
    return opened


@pytest.fixture(scope="module")
def scene_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from fusar_edge.data.simulator import simulate_scene
    from fusar_edge.data.simulator.geotiff import write_geotiff

    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    write_geotiff(path, simulate_scene(7, SIDE, 3.0, kind="coast", count=9))
    return path


@pytest.fixture(scope="module")
def scene(scene_file: Path, bundle: Bundle) -> Iterator[Scene]:
    with open_scene(scene_file, values="power", radiometry=bundle.radiometry) as opened:
        yield opened


@pytest.fixture(scope="module")
def windows(scene: Scene) -> list[TileWindow]:
    return plan_tiles(scene.width, scene.height, TILE_PX, 64)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of one AlphaEarth-like raster of 10 m around the tile."""
    import rasterio

    from fusar_edge.anchors.building.build import build_table
    from fusar_edge.anchors.codes import codes_from_vectors
    from fusar_edge.anchors.table import AnchorTable

    folder, side = tmp_path_factory.mktemp("anchors"), 640
    vectors = np.random.default_rng(0).normal(size=(side // 8, side // 8, 64))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    codes = np.moveaxis(codes_from_vectors(vectors), -1, 0).repeat(8, axis=1).repeat(8, axis=2)  # fields of 80 m
    profile = {
        "driver": "GTiff", "dtype": "int8", "count": 64, "width": side, "height": side, "nodata": -128,
        "crs": f"EPSG:{EPSG}", "transform": rasterio.Affine(PIXEL_M, 0, WEST, 0, -PIXEL_M, NORTH), "tiled": True,
        "blockxsize": 128, "blockysize": 128, "compress": "zstd", "interleave": "band",
    }  # fmt: skip
    with rasterio.open(folder / "raster.tif", "w", **profile) as dataset:
        dataset.write(codes)
    build_table([folder / "raster.tif"], folder / "table", years=[2024], spacing_m=SPACING_M)
    return AnchorTable.open(folder / "table")


def test_tile_read(benchmark: Benchmark, scene: Scene, windows: list[TileWindow]) -> None:
    """Window of a GeoTIFF -> grey [504, 504]; GDAL holds its blocks."""
    benchmark(scene.read, windows[0])


def test_anchor_look_up(benchmark: Benchmark, table: Any) -> None:
    """Footprint -> 81 vectors; chunks in the table's cache."""
    place = (PIXEL_M, 0, WEST + 500, 0, -PIXEL_M, NORTH - 500)

    def look_up() -> int:
        anchors, _ = table.lookup_tile(place, EPSG, TILE_PX, TILE_PX, NODES)
        return len(anchors.vectors())

    assert benchmark(look_up) == NODES**2


def test_vision(benchmark: Benchmark, session: Session) -> None:
    size = session.bundle.settings.image_size
    pixels = np.random.default_rng(1).random((1, 1, size, size), np.float32)
    vectors = np.random.default_rng(2).random((1, NODES**2, 64), np.float32)
    places = np.random.default_rng(3).random((1, NODES**2, 2), np.float32)
    benchmark(session.backend.vision, pixels, vectors, places, np.ones((1, NODES**2), np.float32))


def test_prefix(benchmark: Benchmark, session: Session, visual: np.ndarray) -> None:
    """Keys and values of the image and the template before the question."""
    cache = session.backend.new_cache(session.bundle.settings.context_tokens)
    benchmark(run_prefix, session.backend, cache, session.prefix, visual)


@pytest.mark.parametrize("tokens", [1, 32], ids=["decode_step", "prefill_of_32"])
def test_decoder(benchmark: Benchmark, session: Session, visual: np.ndarray, tokens: int) -> None:
    """One token, or a question of 32, behind a cache of PAST."""
    cache: Any = session.backend.new_cache(PAST + tokens)
    cache.buffer[:] = np.random.default_rng(4).normal(size=cache.buffer.shape, scale=0.5)
    ids, text = np.full((1, tokens), 100, np.int32), np.full((1, tokens), -1, np.int32)
    places = np.tile(np.arange(PAST, PAST + tokens, dtype=np.int32), (3, 1, 1))
    cache.length = PAST

    def step() -> None:
        session.backend.step(cache, ids, visual, text, places)
        cache.truncate(PAST)

    benchmark(step)


@pytest.fixture(scope="module")
def visual(session: Session) -> np.ndarray:
    settings = session.bundle.settings
    return np.random.default_rng(5).normal(size=(1, settings.cells**2, settings.channels)).astype(np.float32)


@pytest.mark.kernel("interpreter")
@pytest.mark.parametrize("task", ["detect", "caption"])
def test_parse(benchmark: Benchmark, task: str) -> None:
    rows = [{"bbox_2d": [i, i + 3, i + 40, i + 60], "label": "ship"} for i in range(20)]
    fields = ("Terrain", "Functionality", "Distribution", "Layout", "Boundary", "Buildings", "Roads", "Water")
    said = json.dumps(rows) if task == "detect" else "\n".join(f"{name}: some words about it" for name in fields)
    assert benchmark(parse_answer, task, said).ok


def test_scene_end_to_end(benchmark: Any, bundle: Bundle, session: Session, scene_file: Path) -> None:
    """Four tiles, all tasks but the free caption, records and merged boxes."""
    tasks = ("count", "grid", "detect", "classify")

    def run() -> int:
        result = interpret(bundle, [scene_file], tasks, values="power", session=session)
        return len(result.scenes[0].records)

    assert benchmark.pedantic(run, rounds=5, warmup_rounds=1) > 0
