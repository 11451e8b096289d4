from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from fusar_edge.anchors.areas.area import area_from_bounds
from fusar_edge.anchors.building.build import build_table
from fusar_edge.anchors.codes import NODATA
from fusar_edge.anchors.layout import CHUNK
from fusar_edge.anchors.planning.plan import bytes_text, plan_from_km2, plan_table, plan_text
from fusar_edge.anchors.table import AnchorTable
from fusar_edge.anchors.zones import projection
from fusar_edge.errors import AnchorError
from tests.anchors.alphaearth_files import random_codes, write_raster

ROOT = Path(__file__).parents[2]


class Tile(NamedTuple):
    location: str
    year: int
    zone: str
    bounds: tuple[int, int, int, int]


def tile(west: int = 172_320, south: int = 4_751_360, *, year: int = 2024, zone: str = "utm16n") -> Tile:
    return Tile("tile.tiff", year, zone, (west, south, west + 81_920, south + 81_920))


def lonlat_box(west: float, south: float, east: float, north: float, zone: str = "utm16n") -> Any:
    """An area within a box in metres, a little smaller all round."""
    x, y = [west, east, east, west], [south, south, north, north]
    lon, lat = projection(zone).transform(x, y, direction="INVERSE")
    return area_from_bounds(max(lon[0], lon[3]), max(lat[0], lat[1]), min(lon[1], lon[2]), min(lat[2], lat[3]))


def files_of(table: Path) -> list[Path]:
    return [path for path in table.rglob("*") if path.is_file() and "/codes/c/" in path.as_posix()]


@pytest.mark.parametrize("spacing_m", [10, 20])
def test_a_plan_with_tiles_counts_what_the_build_then_writes(tmp_path: Path, spacing_m: int) -> None:
    codes = random_codes(200, 560, seed=1)
    west, north = 358_400, 4_907_520
    source = write_raster(tmp_path / "tile.tif", codes, west=west, north=north, blockxsize=256, blockysize=256)
    area = lonlat_box(west + 2_000, north - 1_950, west + 5_450, north - 500)
    known = Tile("tile.tif", 2024, "utm16n", (west, north - 2_000, west + 5_600, north))
    plan = plan_table(area, spacing_m, [2024], tiles=[known])
    build_table([source], tmp_path / "t", years=[2024], spacing_m=spacing_m, area=area, jobs=1)
    table = AnchorTable.open(tmp_path / "t")
    held = table.zones[0].array[0][..., 0] != NODATA
    rows, cols = (np.arange(0, size, CHUNK) for size in held.shape)
    chunks = np.logical_or.reduceat(np.logical_or.reduceat(held, rows, axis=0), cols, axis=1)
    assert plan["exact"]
    assert plan["zones"] == {
        "utm16n": {"cells": int(held.sum()), "chunks": int(chunks.sum()), "shards": len(files_of(table.path))}
    }
    assert plan["bytes_raw"] == 64 * int(held.sum())


def test_real_vectors_take_the_bytes_on_disk_that_were_expected(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "aef" / "aef_wisconsin_2024_16N_10m_int8.tif"
    if not source.is_file():
        pytest.skip(f"{source.name} is not there")
    for spacing_m in (10, 40):
        build_table([source], tmp_path / str(spacing_m), years=[2024], spacing_m=spacing_m, jobs=1)
        bounds = (358_410, 4_905_630, 359_380, 4_906_600)
        plan = plan_table(None, spacing_m, [2024], tiles=[Tile("x", 2024, "utm16n", bounds)])
        written = sum(path.stat().st_size for path in files_of(tmp_path / str(spacing_m)))
        assert plan["bytes_on_disk"] == pytest.approx(written, rel=0.01)


def test_zones_share_an_area_at_their_common_edge() -> None:
    area = area_from_bounds(-90.2, 43, -89.9, 43.2)
    plan = plan_table(area, 80, [2024])
    assert list(plan["zones"]) == ["utm15n", "utm16n"]
    one, two = (entry["cells"] for entry in plan["zones"].values())
    assert one == pytest.approx(2 * two, rel=0.03)
    assert (one + two) * 0.0064 == pytest.approx(area.km2, rel=0.03)
    assert plan["cells"] == one + two
    assert plan["km2"] == area.km2


def test_a_large_area_is_estimated_and_comes_close_to_the_count() -> None:
    area = area_from_bounds(-90, 43, -88.8, 43.9)
    exact, rough = plan_table(area, 80, [2024]), plan_from_km2(area.km2, 80, [2024])
    assert (exact["exact"], rough["exact"]) == (True, False)
    assert rough["cells"] == pytest.approx(exact["cells"], rel=0.005)
    fine = plan_table(area, 10, [2024])
    assert not fine["exact"]
    assert fine["cells"] == pytest.approx(64 * exact["cells"], rel=0.005)
    tiles = [tile(172_320 + 81_920 * i, 4_751_360 + 81_920 * j) for i in range(3) for j in range(2)]
    listed = plan_table(area, 10, [2024], tiles=tiles)
    assert not listed["exact"]
    assert listed["cells"] == pytest.approx(fine["cells"], rel=0.02)


def test_the_whole_earth_is_planned_without_counting_cells() -> None:
    plan = plan_table(area_from_bounds(-180, -90, 180, 90), 10, [2023, 2024])
    assert len(plan["zones"]) == 120
    assert plan["cells"] == sum(entry["cells"] for entry in plan["zones"].values())
    assert plan["cells"] == pytest.approx(2 * 510.07e12 / 100, rel=0.015)  # the rest is beyond 80 S and 84 N
    land = plan_table(None, 10, [2024])
    assert land["bytes_raw"] == 64 * 1_489_000_000_000


def test_years_multiply_the_table_and_what_is_read() -> None:
    area = area_from_bounds(-90, 43, -89.9, 43.1)
    one, three = plan_table(area, 80, [2024]), plan_table(area, 80, [2024, 2022, 2023, 2022])
    assert three["years"] == [2022, 2023, 2024]
    assert three["bytes_raw"] == 3 * one["bytes_raw"]
    assert three["shards"] == 3 * one["shards"]
    assert three["sources"]["bytes_to_read"] == 3 * one["sources"]["bytes_to_read"]
    tiles = [tile(south=4_751_360 + 81_920 * j, year=year) for year in (2022, 2023) for j in range(2)]
    both = plan_table(None, 640, [2022, 2023], tiles=tiles)
    assert both["cells"] == 4 * 128 * 129  # 172,320 is no multiple of 640: a column more
    assert plan_table(None, 640, [2023], tiles=tiles)["cells"] == 2 * 128 * 129


def test_a_baked_table_has_its_rank_in_bytes_and_a_basis() -> None:
    raw, baked = plan_from_km2(100, 80, [2024]), plan_from_km2(100, 80, [2024], form="baked", rank=16)
    assert baked["bytes_raw"] * 4 == raw["bytes_raw"]
    assert baked["bytes_basis"] == 18 * 7168 * 4
    assert baked["bytes_on_disk"] == baked["bytes_raw"] + baked["bytes_basis"] + 1028 * baked["shards"]
    assert raw["bytes_basis"] == 0


def test_only_the_blocks_that_the_area_touches_are_read() -> None:
    west, south = 172_320 + 3 * 10_240, 4_751_360 + 2 * 10_240
    inside = lonlat_box(west + 500, south + 500, west + 9_000, south + 9_000)
    tiles = [tile(), tile(172_320 + 81_920), tile(south=4_751_360 + 81_920)]
    sources = plan_table(inside, 80, [2024], tiles=tiles)["sources"]
    assert (sources["from"], sources["files"], sources["blocks"]) == ("index", 1, 1)
    assert sources["bytes_to_read"] == sources["bytes_overviews"] == 2_120_000_000 * 3 // 4 // 64
    across = lonlat_box(west + 500, south + 500, west + 11_500, south + 22_000)
    assert plan_table(across, 80, [2024], tiles=tiles)["sources"]["blocks"] == 6
    everything = plan_table(None, 20, [2024], tiles=tiles)["sources"]
    assert (everything["files"], everything["blocks"]) == (3, 192)
    assert everything["bytes_overviews"] * 4 == everything["bytes_to_read"]


@pytest.mark.parametrize(("spacing_m", "share"), [(10, None), (30, None), (20, 4), (80, 64), (160, 256), (640, 4096)])
def test_overviews_are_a_share_of_the_full_pixels_where_they_are_published(spacing_m: int, share: int | None) -> None:
    sources = plan_table(None, spacing_m, [2024], tiles=[tile()])["sources"]
    if share is None:
        assert sources["bytes_overviews"] is None
    else:
        assert sources["bytes_overviews"] == pytest.approx(sources["bytes_to_read"] / share, abs=1)


def test_an_estimate_of_what_is_read_is_near_what_the_index_gives() -> None:
    tiles = [tile(172_320 + 81_920 * i, 4_751_360 + 81_920 * j) for i in range(4) for j in range(4)]
    area = lonlat_box(172_320 + 90_000, 4_751_360 + 90_000, 172_320 + 190_000, 4_751_360 + 190_000)
    listed, guessed = (plan_table(area, 80, [2024], tiles=of)["sources"] for of in (tiles, ()))
    assert guessed["from"] == "estimate"
    assert guessed["blocks"] == pytest.approx(listed["blocks"], rel=0.2)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"spacing_m": 0}, "spacing is 0 m"),
        ({"years": []}, "no years"),
        ({"form": "baked"}, "rank is None"),
        ({"form": "baked", "rank": 0}, "rank is 0"),
        ({"rank": 8}, "a raw table has none"),
        ({"form": "cooked"}, "give raw or baked"),
        ({"tiles": [tile(year=2023)]}, "no tile of 2024"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(AnchorError, match=reason):
        plan_table(**({"area": None, "spacing_m": 80, "years": [2024]} | arguments))


def test_an_area_of_no_size_is_refused() -> None:
    for km2 in (0, -1, float("nan")):
        with pytest.raises(AnchorError, match="give more than 0"):
            plan_from_km2(km2, 80, [2024])


def test_a_plan_is_json_and_a_table_for_people() -> None:
    from rich.console import Console

    plan = plan_table(area_from_bounds(-90, 43, -89.9, 43.1), 80, [2024])
    assert json.loads(json.dumps(plan)) == plan
    console = Console(file=io.StringIO(), width=120)
    console.print(plan_text(plan))
    text = console.file.getvalue()  # type: ignore[attr-defined]  # it is the StringIO from above
    assert f"{plan['cells']:,}" in text
    assert bytes_text(plan["bytes_on_disk"]) in text
    assert "counted cell by cell" in text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_600, "1 MB"), (6.4e9, "6.4 GB"), (2e15, "2 PB")],
)
def test_bytes_are_written_with_three_digits(count: float, text: str) -> None:
    assert bytes_text(count) == text


def test_the_sizes_in_the_documents_are_what_the_planner_gives() -> None:
    text = (ROOT / "docs" / "anchors.md").read_text(encoding="utf-8").split("## Sizes")[1].split("\n## ")[0]
    program = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert program is not None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(program[1], {})
    rows = [line for line in text.splitlines() if re.match(r"\|.* \d+ m \|", line)]
    assert len(rows) == 12
    assert printed.getvalue().splitlines() == rows
