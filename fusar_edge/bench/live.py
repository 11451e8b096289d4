"""The scenario `live`: tiles arrive by chance (Poisson), through the service if it is installed, else in a queue here.

At LIVE_LOAD of what can be done: at 1 a queue grows without end. First come, first served.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from fusar_edge.bench.observations import Observation
from fusar_edge.bench.samples import Rule, quantile_interval
from fusar_edge.bench.scenarios import Bench, Verdict, rounds, show
from fusar_edge.bench.station import Station, arrivals, closed_loop, saturated

LIVE_LOAD = 0.7
"""Arrivals over what can be done."""
METRIC = "p90 latency from arrival"


def live_in_queue(bench: Bench, rule: Rule, seed: int) -> Verdict:
    """One engine of this process takes the tiles that are due; latency is arrival -> written."""
    warm = bench.warm_up("live", 1)
    gap_s = _service_ms(bench) / 1e3 / LIVE_LOAD
    start, times, longest = time.perf_counter(), list[float](), 0
    coming = arrivals(gap_s, start, np.random.default_rng(seed))
    due = [next(coming)]
    for indices in rounds(bench.tiles, 1):
        number = len(times)
        if (early := due[number] - time.perf_counter()) > 0:
            time.sleep(early)
        timed = bench.watch.query("live", indices, f"query {number}")
        end = time.perf_counter()
        while due[-1] < end or len(due) == number + 1:  # who came meanwhile, and the next one
            due.append(next(coming))
        longest = max(longest, bisect.bisect_left(due, end) - number - 1)
        latency = (end - due[number]) * 1e3
        # The reference kernel is left out: here it would stand in the queue.
        bench.writer.add(_with_latency(timed.observations, latency))
        times.append(latency)
        show(bench, "live", times, rule)
        if rule.stop(times, end - start):
            break
    return _verdict(times, rule, start, warm, gap_s, longest, f"{METRIC}, queue in this process")


def live_through_service(bench: Bench, rule: Rule, seed: int, station: Station) -> Verdict:
    """Latency is arrival -> the service's event that the scene is done; uploading and journal are in it."""
    warm = closed_loop(station, [tile % bench.tiles for tile in range(max(bench.tiles, 4))])
    bench.writer.add(_query(f"query {i}", ms, warm_up=True) for i, ms in enumerate(warm))
    gap_s = saturated(station, [tile % bench.tiles for tile in range(max(2 * bench.tiles, 12))]) / LIVE_LOAD
    start, times, longest = time.perf_counter(), list[float](), 0
    coming, tiles = arrivals(gap_s, start, np.random.default_rng(seed)), rounds(bench.tiles, 1)
    due, waiting, number, ended = next(coming), dict[str, tuple[int, float]](), 0, False
    body = station.prepare(next(tiles)[0])
    while True:
        # Once it has ended nothing new comes; who still waits is waited for: left out, they would be the slow ones.
        finished = station.done(1.0 if ended else max(due - time.perf_counter(), 0.0))
        if finished is not None and finished[0] in waiting:
            place, arrived = waiting.pop(finished[0])
            times.append((finished[1] - arrived) * 1e3)
            bench.writer.add([_query(f"query {place}", times[-1])])
            show(bench, "live", times, rule)
        if not waiting and ended:
            break
        ended = ended or rule.stop(times, time.perf_counter() - start)
        if not ended and time.perf_counter() >= due:
            waiting[station.submit(body, number)] = number, due
            number, due = number + 1, next(coming)
            longest = max(longest, len(waiting) - 1)
            body = station.prepare(next(tiles)[0])
    return _verdict(times, rule, start, len(warm), gap_s, longest, f"{METRIC}, through the service")


def _verdict(
    times: Sequence[float], rule: Rule, start: float, warm: int, gap_s: float, longest: int, metric: str
) -> Verdict:
    figure = quantile_interval(times, rule.quantile)
    return Verdict(
        scenario="live",
        metric=metric,
        unit="ms",
        figure=figure,
        rule=rule.text(),
        met=figure.share <= rule.share,
        queries=len(times),
        tiles=len(times),
        seconds=time.perf_counter() - start,
        warm_up_queries=warm,
        facts={"arrivals_per_s": 1 / gap_s, "load": LIVE_LOAD, "longest_queue": float(longest)},
    )


def _service_ms(bench: Bench) -> float:
    """Mean time of a tile: as `single` measured it in this run, else of the later half of the warm-up."""
    done = [one for one in bench.writer.observations if one.part == "query"]
    single = [one.ms for one in done if one.scenario == "single" and not one.warm_up]
    warm = [one.ms for one in done if one.scenario == "live"]
    return float(np.mean(single or warm[len(warm) // 2 :]))


def _with_latency(observations: Sequence[Observation], latency_ms: float) -> Iterator[Observation]:
    """The query's time counts from its arrival; its parts stay as they are."""
    for one in observations:
        yield msgspec.structs.replace(one, ms=latency_ms) if one.part == "query" else one


def _query(unit: str, ms: float, warm_up: bool = False) -> Observation:
    return Observation(scenario="live", part="query", unit_id=unit, ms=ms, at=time.time(), warm_up=warm_up)
