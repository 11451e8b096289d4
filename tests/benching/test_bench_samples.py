"""Intervals hold the truth as often as they say, and the rule stops when they are narrow enough."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fusar_edge.bench.samples import (
    Rule,
    bootstrap_interval,
    correlation_time,
    least_observations,
    quantile_interval,
    ratio_interval,
)


@pytest.mark.parametrize(("quantile", "n"), [(0.5, 6), (0.9, 36), (0.99, 368)])
def test_the_fewest_observations_that_bound_a_quantile_are_the_textbook_s(quantile: float, n: int) -> None:
    """Smallest n with q^n <= 0.025: Wilks (1941), two-sided at 95 %."""
    assert least_observations(quantile) == n
    values = list(np.random.default_rng(1).random(n))
    assert quantile_interval(values, quantile).high is not None or correlation_time(np.array(values)) > 1
    assert quantile_interval(values[: n - 1], quantile).high is None


@pytest.mark.parametrize(("quantile", "n"), [(0.5, 40), (0.9, 60), (0.9, 400), (0.99, 600)])
def test_intervals_hold_the_true_quantile_as_often_as_they_say(quantile: float, n: int) -> None:
    random = np.random.default_rng(7)
    truth = float(np.exp(1.2816)) if quantile == 0.9 else 1.0 if quantile == 0.5 else float(np.exp(2.3263))
    runs = 400
    held = 0
    for _ in range(runs):
        found = quantile_interval(random.lognormal(size=n), quantile)
        held += found.low <= truth and (found.high is None or truth <= found.high)
    assert held / runs >= 0.95 - 2 * math.sqrt(0.05 * 0.95 / runs)


def test_ranks_are_those_of_the_binomial_distribution() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(3).permutation(200) + 1.0
    found = quantile_interval(values, 0.9)
    low, high = stats.binom.ppf([0.025, 0.975], 200, 0.9)
    assert correlation_time(values) == 1.0
    assert (found.low, found.high) == (low, high + 1)


def test_observations_that_hang_together_are_worth_less() -> None:
    random = np.random.default_rng(2)
    noise, series = random.normal(size=4000), np.zeros(4000)
    for i in range(1, 4000):
        series[i] = 0.8 * series[i - 1] + noise[i]
    assert correlation_time(noise) < 1.3
    assert correlation_time(series) == pytest.approx((1 + 0.8) / (1 - 0.8), rel=0.3)  # AR(1)
    loose, tight = quantile_interval(np.exp(series), 0.5), quantile_interval(np.exp(random.permutation(series)), 0.5)
    assert loose.share > 2 * tight.share
    assert loose.effective < tight.effective / 5


def test_values_that_repeat_do_not_seem_to_hang_together() -> None:
    assert correlation_time(np.random.default_rng(0).choice([1.0, 2.0], 2000, p=[0.9, 0.1])) < 1.3


def test_equal_values_have_an_interval_of_no_width() -> None:
    found = quantile_interval([3.0] * 100, 0.9)
    assert (found.low, found.value, found.high, found.share) == (3.0, 3.0, 3.0, 0.0)


def test_a_rule_stops_when_the_interval_is_narrow_enough_and_not_before_it_is_closed() -> None:
    rule = Rule(0.9, share=0.05, seconds=1e9)
    random = np.random.default_rng(5)
    values: list[float] = []
    while not rule.stop(values, 0.0):
        values.append(float(10 * np.exp(random.normal(0, 0.1))))
    assert len(values) >= 36
    assert quantile_interval(values, 0.9).share <= 0.05
    assert not rule.stop([10.0] * 35, 0.0)
    assert rule.stop([10.0] * 36, 0.0)


def test_time_ends_a_measurement_once_it_has_enough_observations_and_at_last_without() -> None:
    rule = Rule(0.9, share=1e-9, seconds=10.0)
    values = list(np.random.default_rng(0).random(100))
    assert not rule.stop(values, 9.9)
    assert rule.stop(values, 10.0)
    assert not rule.stop(values[:20], 29.0)
    assert rule.stop(values[:20], 30.0)


def test_ratios_of_pairs_hold_the_true_ratio_though_pairs_differ_widely() -> None:
    random = np.random.default_rng(11)
    runs, held = 60, 0
    for _ in range(runs):
        tile = random.lognormal(0, 1.0, 40)
        fast, slow = tile * random.lognormal(0, 0.1, 40), 2.5 * tile * random.lognormal(0, 0.1, 40)
        found = ratio_interval(slow, fast)
        held += found.high is not None and found.low <= 2.5 <= found.high
        assert found.share < 0.1
    assert held / runs >= 0.88  # 60 runs of 0.95


def test_pairs_of_a_round_that_share_the_machine_s_state_are_not_taken_for_independent() -> None:
    random = np.random.default_rng(12)
    runs, held, naive = 200, 0, 0
    for _ in range(runs):
        state = np.repeat(random.normal(0, 0.1, 8), 9)
        slow = 3.0 * np.exp(state + random.normal(0, 0.02, 72))
        found, blind = ratio_interval(slow, np.ones(72), np.repeat(np.arange(8), 9)), ratio_interval(slow, np.ones(72))
        held += found.low <= 3.0 <= (found.high or math.inf)
        naive += blind.low <= 3.0 <= (blind.high or math.inf)
    assert held / runs >= 0.91
    assert naive / runs < held / runs


def test_units_that_come_in_turns_do_not_hide_a_drift() -> None:
    """Five tasks of different times, one after the other, on a machine that drifts: intervals hold all the same."""
    random, runs, n, held, blind = np.random.default_rng(13), 200, 200, 0, 0
    levels, units = np.log([1.0, 1.1, 1.3, 1.5, 2.0]), np.arange(n) % 5
    many = levels[random.integers(0, 5, 400_000)] + random.normal(0, 0.5, 400_000)
    true = math.exp(float(np.quantile(many, 0.9)))
    for _ in range(runs):
        drift = np.zeros(n)
        drift[0] = random.normal(0, 0.5)
        for i in range(1, n):
            drift[i] = 0.9 * drift[i - 1] + random.normal(0, 0.5 * math.sqrt(1 - 0.9**2))
        values = np.exp(levels[units] + drift)
        for seeing in (True, False):
            found = quantile_interval(values, 0.9, units=list(units) if seeing else None)
            inside = found.low <= true and (found.high is None or true <= found.high)
            held, blind = held + (inside and seeing), blind + (inside and not seeing)
    assert held / runs >= 0.88
    assert blind <= held


def test_a_drift_that_no_unit_feels_at_the_quantile_costs_nothing() -> None:
    """Tiles that take 50 and 200 ms, to a percent: p90 is the second's, however a percent drifts."""
    drift = 1 + 0.01 * np.sin(np.arange(1000) / 300)
    found = quantile_interval(np.tile([50.0, 50.0, 200.0, 200.0], 250) * drift, 0.9, units=[0, 1, 2, 3] * 250)
    assert found.high is not None
    assert found.share < 0.02


def test_one_observation_has_no_upper_bound() -> None:
    assert bootstrap_interval([[2.0]], lambda x: float(x.mean())).high is None
