"""The four scenarios, after MLPerf Inference (Reddi et al., ISCA 2020, arXiv 1911.02549): when tiles come, what judges.

single    one tile at a time, the next when the last is written          p90 of the latency
multi     queries of several tiles at once                               p99 of a query's latency
offline   all tiles are there, any order, batches                        tiles a second
live      tiles arrive by chance (Poisson), one queue, one engine        p90 of arrival -> written
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from fusar_edge.bench.observations import Observation, ObservationWriter
from fusar_edge.bench.reference import Reference
from fusar_edge.bench.samples import (
    Interval,
    Rule,
    bootstrap_interval,
    correlation_time,
    quantile_interval,
)
from fusar_edge.bench.timing import REFERENCE, Stopwatch

if TYPE_CHECKING:
    from fusar_edge.bench.station import Station

SCENARIOS = ("single", "multi", "offline", "live")
MULTI_TILES = 4
"""Of one query. MLPerf has 8; 4 is what vision takes at once in the service."""
OFFLINE_TILES = 4
QUICK_S = 10.0
KERNELS = 16
"""Runs of the reference kernel after each query, about 4 ms: as long as a scheduler's time slice, so that it meets what
the stages meet."""

Progress = Callable[[int, int, str], None]


class Verdict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The figure that a scenario is judged by."""

    scenario: str
    metric: str
    unit: str
    figure: Interval
    rule: str
    """When it was to stop."""
    met: bool
    """The interval is as narrow as the rule wants."""
    queries: int
    tiles: int
    seconds: float
    warm_up_queries: int
    facts: dict[str, float] = {}
    """live: arrivals a second, share of capacity, longest queue."""


@dataclass(frozen=True)
class Bench:
    """What every scenario works with."""

    watch: Stopwatch
    writer: ObservationWriter
    reference: Reference
    progress: Progress | None = None
    station: Callable[[], AbstractContextManager[Station]] | None = None
    """Starts the service for `live`; None: it is not installed."""

    @property
    def tiles(self) -> int:
        return len(self.watch.work.windows)

    def query(self, scenario: str, indices: Sequence[int], number: int, warm_up: bool = False) -> float:
        """One query, its observations kept, the reference kernel after it. Returns milliseconds."""
        timed = self.watch.query(scenario, indices, f"query {number}", warm_up)
        self.writer.add(timed.observations)
        ms = sum(self.reference() for _ in range(KERNELS))
        kernel = Observation(
            scenario=scenario, part=REFERENCE, unit_id=REFERENCE, ms=ms, at=time.time(), warm_up=warm_up
        )
        self.writer.add([kernel])
        return timed.ms

    def warm_up(self, scenario: str, tiles: int) -> int:
        """Every tile once, at least two queries: allocators, caches and clocks settle. Returns the queries."""
        queries = max(-(-self.tiles // tiles), 2)
        for number, indices in zip(range(queries), rounds(self.tiles, tiles), strict=False):
            self.query(scenario, indices, number, warm_up=True)
        return queries


def rule_of(scenario: str, *, quick: bool = False, seconds: float = 120.0) -> Rule:
    """How long a scenario measures. `quick`: a look, not a measurement: its numbers are not publishable."""
    quantile = {"single": 0.90, "multi": 0.99, "offline": 0.5, "live": 0.90}[scenario]
    return Rule(quantile, seconds=min(QUICK_S, seconds) if quick else seconds, floor=24)


def run_scenario(bench: Bench, scenario: str, rule: Rule, *, seed: int = 0) -> Verdict:
    """Warm up, measure until the rule is met or time is up, judge."""
    return {"single": _single, "multi": _multi, "offline": _offline, "live": _live}[scenario](bench, rule, seed)


def _single(bench: Bench, rule: Rule, seed: int) -> Verdict:
    return _closed(bench, "single", 1, rule, "p90 latency of a tile")


def _multi(bench: Bench, rule: Rule, seed: int) -> Verdict:
    return _closed(bench, "multi", MULTI_TILES, rule, f"p99 latency of {MULTI_TILES} tiles")


def _closed(bench: Bench, scenario: str, tiles: int, rule: Rule, metric: str) -> Verdict:
    """The next query when the last is done."""
    warm = bench.warm_up(scenario, tiles)
    start, times, units = time.perf_counter(), list[float](), list[int]()
    for indices in rounds(bench.tiles, tiles):
        times.append(bench.query(scenario, indices, len(times)))
        units.append(indices[0])
        show(bench, scenario, times, rule)
        if rule.stop(times, time.perf_counter() - start, units):
            break
    figure = quantile_interval(times, rule.quantile, units=units)
    return Verdict(
        scenario=scenario,
        metric=metric,
        unit="ms",
        figure=figure,
        rule=rule.text(),
        met=figure.share <= rule.share,
        queries=len(times),
        tiles=len(times) * tiles,
        seconds=time.perf_counter() - start,
        warm_up_queries=warm,
    )


def _offline(bench: Bench, rule: Rule, seed: int) -> Verdict:
    """Batches, one after the other; the interval is that of the mean time of a batch."""
    warm = bench.warm_up("offline", OFFLINE_TILES)
    start, times, figure = time.perf_counter(), list[float](), None
    kept = len(bench.writer.observations)
    for indices in rounds(bench.tiles, OFFLINE_TILES):
        times.append(bench.query("offline", indices, len(times)))
        show(bench, "offline", times, rule)
        elapsed = time.perf_counter() - start
        if len(times) >= rule.least and len(times) % 8 == 0:
            figure = _throughput(times)
            if figure.share <= rule.share or elapsed >= rule.seconds:
                break
        if elapsed >= 3 * rule.seconds or len(times) >= rule.most:
            break
    figure = _throughput(times)
    tokens = [one.tokens for one in bench.writer.observations[kept:] if one.part == "query"]
    return Verdict(
        scenario="offline",
        metric="throughput",
        unit="tiles/s",
        figure=figure,
        rule=rule.text().replace(f"p{100 * rule.quantile:g}", "the mean"),
        met=figure.share <= rule.share,
        queries=len(times),
        tiles=len(times) * OFFLINE_TILES,
        seconds=time.perf_counter() - start,
        warm_up_queries=warm,
        facts={"tokens_per_s": sum(tokens) / (time.perf_counter() - start)},
    )


def _live(bench: Bench, rule: Rule, seed: int) -> Verdict:
    from fusar_edge.bench.live import live_in_queue, live_through_service

    if bench.station is None:
        return live_in_queue(bench, rule, seed)
    with bench.station() as station:
        return live_through_service(bench, rule, seed, station)


def _throughput(times: Sequence[float]) -> Interval:
    """Tiles a second. Batches that hang together are averaged in blocks before they are drawn again."""
    values = np.array(times)
    length = min(int(np.ceil(correlation_time(values))), max(len(values) // 8, 1))
    blocks = np.array([block.mean() for block in np.array_split(values, max(len(values) // length, 1))])
    found = bootstrap_interval([blocks], lambda x: OFFLINE_TILES * 1e3 / float(np.mean(x)))
    return Interval(found.value, found.low, found.high, len(times), len(blocks))


def rounds(total: int, size: int) -> Iterator[list[int]]:
    """Tiles in order, again and again, `size` at a time."""
    at = 0
    while True:
        yield [(at + i) % total for i in range(size)]
        at = (at + size) % total


def show(bench: Bench, scenario: str, times: Sequence[float], rule: Rule) -> None:
    if bench.progress:
        wanted = max(rule.least, len(times))
        bench.progress(len(times), wanted, f"{scenario}: {times[-1]:.0f} ms")
