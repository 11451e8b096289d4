"""Scenarios: who is asked when, what judges, when it stops."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fusar_edge.bench import live, scenarios
from fusar_edge.bench.live import LIVE_LOAD
from fusar_edge.bench.observations import Observation
from fusar_edge.bench.samples import Rule
from fusar_edge.bench.scenarios import MULTI_TILES, OFFLINE_TILES, Bench, rule_of, run_scenario


class Clock:
    """Time that passes when something is done."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept = 0.0

    def perf_counter(self) -> float:
        return self.now

    def time(self) -> float:
        return 1e9 + self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds


class FakeWatch:
    """A tile takes 100 ms, in a batch 80 ms; one query in ten, by chance, twice as long."""

    def __init__(self, clock: Clock, tiles: int = 5) -> None:
        self.clock, self.queries = clock, list[tuple[str, list[int], bool, float]]()
        self.random = np.random.default_rng(4)
        self.work = SimpleNamespace(windows=[None] * tiles)

    def query(self, scenario: str, indices: Sequence[int], name: str, warm_up: bool = False) -> Any:
        ms = 100.0 if len(indices) == 1 else 80.0 * len(indices)
        ms *= (2 if self.random.random() < 0.1 else 1) * self.random.uniform(0.99, 1.01)
        self.queries.append((scenario, list(indices), warm_up, self.clock.now))
        self.clock.now += ms / 1e3
        made = Observation(
            scenario=scenario, part="query", unit_id=name, ms=ms, at=self.clock.time(), warm_up=warm_up, tokens=7
        )
        return SimpleNamespace(records=[], observations=[made], ms=ms)


class Kept:
    def __init__(self) -> None:
        self.observations: list[Observation] = []

    def add(self, more: Sequence[Observation]) -> None:
        self.observations += more


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    clock = Clock()
    monkeypatch.setattr(scenarios, "time", clock)
    monkeypatch.setattr(live, "time", clock)
    return Bench(FakeWatch(clock), Kept(), lambda: 1.0)  # type: ignore[arg-type]


RULE = Rule(0.9, share=1e-9, most=200, seconds=1e9)


def test_single_stream_is_judged_by_p90_of_one_tile_at_a_time(bench: Bench) -> None:
    verdict = run_scenario(bench, "single", RULE)
    assert verdict.queries == verdict.tiles == 200
    assert 99.0 <= verdict.figure.value <= 202.0
    queries = [indices for _, indices, warm, _ in bench.watch.queries if not warm]  # type: ignore[attr-defined]
    assert queries[:7] == [[0], [1], [2], [3], [4], [0], [1]]


def test_the_warm_up_is_every_tile_once_and_in_no_figure(bench: Bench) -> None:
    verdict = run_scenario(bench, "single", RULE)
    assert verdict.warm_up_queries == 5
    warm = [one for one in bench.writer.observations if one.warm_up and one.part == "query"]
    assert [one.unit_id for one in warm] == [f"query {i}" for i in range(5)]
    assert verdict.figure.n == 200


def test_multi_stream_asks_about_several_tiles_at_once(bench: Bench) -> None:
    verdict = run_scenario(bench, "multi", Rule(0.99, share=1e-9, most=400, seconds=1e9))
    assert verdict.tiles == 400 * MULTI_TILES
    assert verdict.figure.value == pytest.approx(2 * 80 * MULTI_TILES, rel=0.02)
    queries = [indices for _, indices, warm, _ in bench.watch.queries if not warm]  # type: ignore[attr-defined]
    assert queries[:3] == [[0, 1, 2, 3], [4, 0, 1, 2], [3, 4, 0, 1]]


def test_offline_is_judged_by_tiles_a_second(bench: Bench) -> None:
    verdict = run_scenario(bench, "offline", RULE)
    mean_ms = 0.9 * 80 * OFFLINE_TILES + 0.1 * 160 * OFFLINE_TILES
    assert verdict.figure.value == pytest.approx(OFFLINE_TILES * 1e3 / mean_ms, rel=0.1)
    assert verdict.figure.low < verdict.figure.value < (verdict.figure.high or 0)
    assert verdict.facts["tokens_per_s"] == pytest.approx(7 * 200 / verdict.seconds, rel=0.01)


def test_live_tiles_come_by_chance_at_a_share_of_what_can_be_done(bench: Bench) -> None:
    run_scenario(bench, "single", RULE)
    verdict = run_scenario(bench, "live", Rule(0.99, share=1e-9, most=3000, seconds=1e9))
    rate = verdict.facts["arrivals_per_s"]
    assert rate == pytest.approx(LIVE_LOAD / 0.11, rel=0.1)
    assert verdict.seconds == pytest.approx(3000 / rate, rel=0.1)
    latencies = np.array([o.ms for o in bench.writer.observations if o.scenario == "live" and not o.warm_up])
    assert latencies.min() >= 98.9
    # M/G/1 with service 110 ms +- 30: the mean wait is rate E[S^2] / 2 (1 - rate E[S]) (Pollaczek and Khinchine).
    rho, second = rate * 0.110, 0.9 * 0.1**2 + 0.1 * 0.2**2
    wait_ms = 1e3 * rate * second / 2 / (1 - rho)
    assert latencies.mean() - 110 == pytest.approx(wait_ms, rel=0.35)
    assert verdict.facts["longest_queue"] >= 2


def test_the_reference_kernel_runs_between_tiles_but_not_in_the_queue(bench: Bench) -> None:
    run_scenario(bench, "single", RULE)
    run_scenario(bench, "live", RULE)
    kernels = [o.scenario for o in bench.writer.observations if o.part == "reference" and not o.warm_up]
    assert kernels == ["single"] * 200


@pytest.mark.parametrize("scenario", ["single", "multi", "offline", "live"])
def test_a_rule_that_is_met_ends_a_scenario(bench: Bench, scenario: str) -> None:
    loose = Rule(rule_of(scenario).quantile, share=0.9, most=20_000, seconds=1e9, floor=24)
    verdict = run_scenario(bench, scenario, loose)
    assert verdict.met
    assert verdict.queries < 20_000
    assert str(loose.least) in verdict.rule


@pytest.mark.parametrize("scenario", ["single", "multi", "offline", "live"])
def test_time_ends_a_scenario_and_the_verdict_says_that_it_was_not_enough(bench: Bench, scenario: str) -> None:
    verdict = run_scenario(bench, scenario, Rule(0.99, share=1e-9, seconds=5.0))
    assert not verdict.met
    assert verdict.seconds == pytest.approx(15.0, rel=0.1)
