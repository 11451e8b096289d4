"""`live` through a real service: scenes by HTTP, events back, arrivals by chance; and repeats of a real run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
from bench_parts import default_session, small_workload

from fusar_edge.bench.conditions import ConditionsWatch, disturbances
from fusar_edge.bench.diff import diff
from fusar_edge.bench.live import live_through_service
from fusar_edge.bench.observations import Observation, ObservationWriter
from fusar_edge.bench.reference import Reference
from fusar_edge.bench.samples import Rule
from fusar_edge.bench.scenarios import Bench, run_scenario
from fusar_edge.bench.station import arrivals, can_serve, open_station
from fusar_edge.bench.timing import Stopwatch
from fusar_edge.bench.workload import Workload
from fusar_edge.errors import EdgeError
from fusar_edge.runtime.backend import Backend, Floats
from fusar_edge.runtime.session import Session


@pytest.fixture(scope="module")
def session() -> Session:
    return default_session()


@pytest.fixture(scope="module")
def work(session: Session, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workload]:
    with small_workload(session, tmp_path_factory.mktemp("work")) as workload:
        yield workload


def test_arrivals_are_a_poisson_process() -> None:
    source = arrivals(0.25, 100.0, np.random.default_rng(3))
    times = np.array([next(source) for _ in range(4000)])
    gaps = np.diff(times, prepend=100.0)
    assert gaps.mean() == pytest.approx(0.25, rel=0.05)
    assert gaps.std() == pytest.approx(0.25, rel=0.06)  # of an exponential law, as its mean
    counts = np.histogram(times, bins=int((times[-1] - 100) / 2))[0]
    assert counts.var() == pytest.approx(counts.mean(), rel=0.2)


def test_tiles_go_through_a_real_service_and_come_back_done(session: Session, work: Workload, tmp_path: Path) -> None:
    if not can_serve():
        pytest.skip("the extra `service` is not installed")
    with (
        ObservationWriter(tmp_path / "observations.jsonl") as writer,
        open_station("default", work, tmp_path / "service", threads=1) as station,
    ):
        first, again = station.prepare(0), station.prepare(0)
        bench = Bench(Stopwatch(session, work), writer, Reference())
        verdict = live_through_service(bench, Rule(0.9, share=1e-9, most=5, seconds=1e9), 0, station)
        with pytest.raises(EdgeError, match="refused a tile"):
            station.submit(b"no GeoTIFF", 99)
    assert first != again  # equal files would be one scene
    with rasterio.MemoryFile(first) as memory, memory.open() as tile:
        assert (tile.width, tile.height) == (work.windows[0].width, work.windows[0].height)
        assert tile.tags()["SIMULATED"] == "YES"
    assert verdict.queries >= 5  # and who still waited when the rule was met: the slow ones
    assert verdict.warm_up_queries == 4
    assert "through the service" in verdict.metric
    assert [one.warm_up for one in writer.observations] == [True] * 4 + [False] * verdict.queries
    assert all(one.ms > 0 for one in writer.observations)


class SlowVision:
    """The backend, its vision a fifth slower: it waits, busily, for a fifth of what vision took."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def __getattr__(self, name: str) -> object:
        return getattr(self.backend, name)

    def vision(self, pixels: Floats, anchors: Floats, positions: Floats, mask: Floats) -> Floats:
        start = time.perf_counter()
        tokens = self.backend.vision(pixels, anchors, positions, mask)
        until = time.perf_counter() + 0.2 * (time.perf_counter() - start)
        while time.perf_counter() < until:
            pass
        return tokens


def short_run(session: Session, work: Workload, path: Path) -> list[Observation]:
    with ObservationWriter(path) as writer:
        bench = Bench(Stopwatch(session, work), writer, Reference())
        run_scenario(bench, "single", Rule(0.9, share=1e-9, most=120, seconds=1e9))
        return writer.observations


@pytest.mark.slow
def test_ten_repeats_of_the_default_bundle_raise_no_alarm_and_a_slower_vision_does(
    session: Session, work: Workload, tmp_path: Path
) -> None:
    slower = Session(session.bundle, backend=SlowVision(session.backend))  # type: ignore[arg-type]
    with ConditionsWatch(session.bundle, 1) as conditions:
        runs = [short_run(session, work, tmp_path / f"{i}.jsonl") for i in range(11)]
        planted = short_run(slower, work, tmp_path / "slow.jsonl")
    if disturbed := disturbances(conditions.finish()):
        pytest.skip(f"wants a machine that does nothing else: {'; '.join(disturbed)}")
    assert [diff(runs[0], other).culprits for other in runs[1:]] == [()] * 10
    assert diff(runs[-1], planted).culprits == ("single: vision",)
