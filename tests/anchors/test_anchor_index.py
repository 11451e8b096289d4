from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alphaearth_files import write_index
from http_files import FileServer, file_server

from fusar_edge.anchors.areas.area import area_from_bounds, area_from_geojson
from fusar_edge.anchors.sources.index import COLUMNS, Index, IndexedTile, read_index
from fusar_edge.errors import AnchorError, MissingExtraError

pytest.importorskip("pyarrow", reason="the index needs pyarrow (extra: tables)")

SOURCE = "s3://us-west-2.opendata.source.coop/tge-labs/aef/v1/annual/2024/17N/xs5-0000000000-0000000000.tiff"
GOOGLE = "gs://alphaearth_foundations/satellite_embedding/v1/annual/2023/10N/t.tiff"
TENNESSEE = area_from_bounds(-84.0, 35.9, -83.9, 36.0)


def box(west: float, south: float, east: float, north: float) -> dict[str, Any]:
    return dict(zip(COLUMNS[7:], (west, south, east, north), strict=True))


def index_of(folder: Path, *rows: dict[str, Any]) -> Index:
    return read_index(str(write_index(folder / "aef_index.parquet", list(rows))))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "annual").mkdir()
    with file_server(tmp_path) as server:
        yield server


def test_years_are_those_of_the_file(tmp_path: Path) -> None:
    index = index_of(tmp_path, *({"path": f"{year}/a.tiff", "year": year} for year in (2031, 2019, 2024, 2019)))
    assert index.years == [2019, 2024, 2031]


@pytest.mark.parametrize("years", [[2018, 2024, 2017], []])
def test_a_year_that_the_index_lacks_is_named_with_those_it_has(tmp_path: Path, years: list[int]) -> None:
    index = index_of(tmp_path, {"path": SOURCE, "year": 2024}, {"path": GOOGLE, "year": 2023})
    wanted = "2017, 2018" if years else "none given"
    with pytest.raises(
        AnchorError, match=rf"aef_index\.parquet: no tiles of the year {wanted}; there are \[2023, 2024\]"
    ):
        index.tiles(None, years)


def test_tiles_of_both_hosts_come_out_once_and_in_order(tmp_path: Path) -> None:
    south = {"crs": "EPSG:32701", "utm_zone": "1S", "utm_south": 9_000_000.0, "utm_north": 9_081_920.0}
    rows: list[dict[str, Any]] = [
        {"path": SOURCE, "year": 2024},
        {"path": "https://data.source.coop/tge-labs/aef/v1/annual/2024/1S/s.tiff", "year": 2024, **south},
        {"path": SOURCE, "year": 2024, "fid": 7},
        {"path": GOOGLE, "year": 2023, "crs": "epsg:32610", "utm_zone": "17N"},
        {"path": SOURCE.replace("2024", "2022"), "year": 2022},
    ]
    first, second = (index_of(tmp_path, *some).tiles(None, [2024, 2023]) for some in (rows, rows[::-1]))
    assert first == second
    assert first == [
        IndexedTile(GOOGLE, 2023, "utm10n", (172320, 3932160, 254240, 4014080)),
        IndexedTile(rows[1]["path"], 2024, "utm01s", (172320, 9000000, 254240, 9081920)),
        IndexedTile(SOURCE, 2024, "utm17n", (172320, 3932160, 254240, 4014080)),
    ]


def test_a_mirror_takes_the_place_of_everything_up_to_annual(tmp_path: Path) -> None:
    index = index_of(tmp_path, {"path": SOURCE, "year": 2024}, {"path": "2024/10N/r.tiff", "year": 2024})
    for mirror in ("/copies/aef", "https://h.example/aef/"):
        start = mirror.rstrip("/")
        tiles = index.tiles(None, [2024], mirror=mirror)
        assert [tile.location for tile in tiles] == [
            f"{start}/2024/10N/r.tiff",
            f"{start}/2024/17N/xs5-0000000000-0000000000.tiff",
        ]
    other = index_of(tmp_path, {"path": "https://h.example/tiles/t.tiff", "year": 2024})
    with pytest.raises(AnchorError, match=r"'https://h\.example/tiles/t\.tiff' has no /annual/"):
        other.tiles(None, [2024], mirror="/copies")


def test_a_relative_path_lies_beside_the_index(tmp_path: Path, server: FileServer) -> None:
    folder = tmp_path / "annual"
    [local] = index_of(folder, {"path": "2024/17N/t.tiff", "year": 2024}).tiles(None, [2024])
    assert local.location == str(folder / "2024/17N/t.tiff")
    [remote] = read_index(f"{server.url}/annual/aef_index.parquet").tiles(TENNESSEE, [2024])
    assert remote.location == f"{server.url}/annual/2024/17N/t.tiff"
    assert all((request.user_agent or "").startswith("fusar-edge/") for request in server.requests)


@pytest.mark.parametrize("path", ["/etc/t.tiff", "../../t.tiff", "ftp://h/t.tiff", "s3://b/annual/../t.tiff"])
def test_an_index_from_the_network_cannot_name_files_of_this_machine(
    tmp_path: Path, server: FileServer, path: str
) -> None:
    write_index(tmp_path / "annual" / "i.parquet", [{"path": path, "year": 2024}])
    index = read_index(f"{server.url}/annual/i.parquet")
    for mirror in (None, "/copies"):
        with pytest.raises(AnchorError, match=r"i\.parquet: the path .* is neither an address nor below the index"):
            index.tiles(None, [2024], mirror=mirror)


def test_an_index_that_is_not_there_names_address_and_status(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(AnchorError, match=rf"{server.url}/annual/no\.parquet: cannot be fetched \(HTTP 404"):
        read_index(f"{server.url}/annual/no.parquet")
    with pytest.raises(AnchorError, match=r"no\.parquet: no such file"):
        read_index(str(tmp_path / "no.parquet"))


def test_the_area_chooses_by_the_valid_part_of_a_tile_and_exactly(tmp_path: Path) -> None:
    triangle = {"type": "Polygon", "coordinates": [[[0, 0], [10, 0], [0, 10], [0, 0]]]}
    (tmp_path / "aoi.geojson").write_text(json.dumps(triangle))
    area = area_from_geojson(tmp_path / "aoi.geojson")
    index = index_of(
        tmp_path,
        {"path": "inside.tiff", "year": 2024, **box(1, 1, 2, 2)},
        {"path": "in-the-bounds-alone.tiff", "year": 2024, **box(8, 8, 9, 9)},
        {"path": "outside.tiff", "year": 2024, **box(20, 1, 21, 2)},
        {"path": "without-a-valid-part.tiff", "year": 2024, **box(*[float("nan")] * 4)},
    )
    assert [Path(tile.location).name for tile in index.tiles(area, [2024])] == ["inside.tiff"]
    with pytest.raises(AnchorError, match=r"no tile of \[2024\] meets the area"):
        index.tiles(TENNESSEE, [2024])


def test_tiles_and_areas_across_the_antimeridian_meet(tmp_path: Path) -> None:
    boxes = {
        "west": box(179, -18, 179.9, -17),
        "across": box(179.5, -18, -179.5, -17),
        "east": box(-180, -18, -179, -17),
    }
    boxes |= {"world": box(-180, -18, 180, -17), "far": box(0, -18, 1, -17)}
    index = index_of(tmp_path, *({"path": f"{name}.tiff", "year": 2024, **b} for name, b in boxes.items()))
    found = index.tiles(area_from_bounds(179.7, -17.6, -179.7, -17.5), [2024])
    assert {Path(tile.location).stem for tile in found} == {"west", "across", "east", "world"}
    found = index.tiles(area_from_bounds(-179.8, -17.6, -179.7, -17.5), [2024])
    assert {Path(tile.location).stem for tile in found} == {"across", "east", "world"}


def test_no_tile_is_lost_by_the_look_at_bounds(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    west, south = rng.uniform(-180, 180, 300), rng.uniform(-80, 80, 300)
    east = (west + rng.uniform(0.1, 8, 300) + 180) % 360 - 180
    boxes = [box(*map(float, edges)) for edges in zip(west, south, east, south + 4, strict=True)]
    index = index_of(tmp_path, *({"path": f"{i}.tiff", "year": 2024, **b} for i, b in enumerate(boxes)))
    for area in (
        area_from_bounds(-100, -30, 60, 40),
        area_from_bounds(170, -80, -120, 84),
        area_from_bounds(5, 5, 6, 6),
    ):
        expected = {str(i) for i, b in enumerate(boxes) if area.intersects(*b.values())}
        found = {Path(tile.location).stem for tile in index.tiles(area, [2024])} if expected else set()
        assert found == expected


@pytest.mark.parametrize("change", [{"crs": "EPSG:4326"}, {"crs": None}, {"utm_west": None}])
def test_an_entry_off_utm_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    index = index_of(tmp_path, {"path": SOURCE, "year": 2024}, {"path": GOOGLE, "year": 2023, **change})
    assert len(index.tiles(None, [2024])) == 1
    with pytest.raises(AnchorError, match=r"tile gs://.*/t\.tiff has the CRS"):
        index.tiles(None, [2023])


def test_missing_columns_are_named(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"path": ["a"], "year": [2024], "geometry": [b""]}), tmp_path / "i.parquet")
    with pytest.raises(
        AnchorError, match=r"i\.parquet: no column crs, utm_west, .*wgs84_north; an AlphaEarth index has"
    ):
        read_index(str(tmp_path / "i.parquet"))


@pytest.mark.parametrize("content", [b"", b"PAR1 is not all of it", b"path,year\n"])
def test_what_is_no_parquet_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "i.parquet").write_bytes(content)
    with pytest.raises(AnchorError, match=r"i\.parquet: not a Parquet file"):
        read_index(str(tmp_path / "i.parquet"))


def test_without_pyarrow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fusar-edge\[tables\]'"):
        read_index("aef_index.parquet")
