"""The same table from threads, from one thread and from a Dask cluster."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from alphaearth_files import random_codes, write_points, write_raster

from fusar_edge.anchors.areas.area import area_from_bounds
from fusar_edge.anchors.building.build import build_table
from fusar_edge.anchors.building.workers import done_in_any_order, open_workers
from fusar_edge.anchors.codes import vectors_from_codes
from fusar_edge.anchors.layout import SHARD_M
from fusar_edge.anchors.table import AnchorTable
from fusar_edge.anchors.verify import verify_table
from fusar_edge.errors import AnchorError, InputError

WEST, NORTH = 327680, 4915200


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Rasters in three shards, and points of a neighbouring zone."""
    folder = tmp_path_factory.mktemp("sources")
    codes = [random_codes(50, 60, seed=i, masked=0.2) for i in range(3)]
    rasters = [
        write_raster(folder / f"{i}.tif", codes[i], west=WEST + i * SHARD_M, north=NORTH, bottom_up=i == 1)
        for i in range(3)
    ]
    vectors = vectors_from_codes(random_codes(1, 5)[0])
    lat, lon = [44.0, 44.001, 44.5, 44.2, 44.4], [-90.5, -90.5, -91.0, -92.0, -90.1]
    points = write_points(folder / "p.csv", lat, lon, vectors)
    return [*rasters, points]


@pytest.mark.filterwarnings("ignore")  # of Dask's own sockets and event loops while a cluster closes
def test_a_cluster_of_two_workers_writes_the_same_bytes_as_one_thread(sources: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    area = area_from_bounds(-93, 43, -87, 46)
    options = {"years": [2024], "spacing_m": 80, "area": area}
    alone = build_table(sources, tmp_path / "a", jobs=1, **options)
    threads = build_table(sources, tmp_path / "b", jobs=4, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cluster = build_table(sources, tmp_path / "c", cluster="local:2", **options)
    assert alone.files == threads.files == cluster.files
    assert alone.figures == threads.figures == cluster.figures
    assert len(AnchorTable.open(tmp_path / "c").zones) == 2
    verify_table(tmp_path / "c")


@pytest.mark.parametrize("cluster", ["local:0", "local:many", "tcp://127.0.0.1:1", "nonsense"])
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_that_is_not_there_is_refused(sources: list[Path], tmp_path: Path, cluster: str) -> None:
    pytest.importorskip("distributed")
    with pytest.raises(InputError, match="--cluster"):
        build_table(sources, tmp_path / "t", years=[2024], spacing_m=80, cluster=cluster)
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_one_piece_stops_the_others_and_is_the_one_that_is_raised() -> None:
    begun = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 5:
            raise AnchorError("number 5")
        return number

    with open_workers(jobs=2) as (executor, at_once), pytest.raises(AnchorError, match="number 5"):
        list(done_in_any_order(executor, at_once, work, range(1000)))
    assert len(begun) < 30


def test_every_piece_is_done_once_however_many_there_are() -> None:
    with open_workers(jobs=3) as (executor, at_once):
        assert sorted(done_in_any_order(executor, at_once, abs, range(100))) == list(range(100))
        assert list(done_in_any_order(executor, at_once, abs, [])) == []
