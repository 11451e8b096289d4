"""How many observations are enough, and how sure a quantile or a ratio is. By rule: nothing here is chosen by eye.

Quantiles: order statistics (David and Nagaraja, Order Statistics, 3rd ed., section 7.1), which ask nothing of the
distribution. Observations of one run hang together (heat, clocks, caches), so that n of them say less than n that do
not: the interval is that of n / tau, tau being the integrated autocorrelation time, summed in pairs of lags as Geyer
does (Statistical Science 7, 1992) up to the first pair that chance explains; also of what is left when each unit's
(tile's, question's) own mean is taken off, since units that come in turns hide a slow drift. Means: the bootstrap.
Ratios of pairs: Student's t over the rounds that they were measured in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

LEVEL = 0.95
RESAMPLES = 2000

Values = npt.NDArray[np.float64]


class Interval(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A figure and the interval that holds its true value with probability LEVEL."""

    value: float
    low: float
    high: float | None
    """None: too few observations to bound it from above."""
    n: int
    """Observations."""
    effective: float
    """Independent ones that they are worth."""

    @property
    def share(self) -> float:
        """Half width over the value; infinite where the interval is open."""
        if self.high is None or self.value <= 0:
            return math.inf
        return (self.high - self.low) / 2 / self.value


@dataclass(frozen=True)
class Rule:
    """When to stop: the interval of the quantile that the scenario is judged by is narrow enough, or time is up."""

    quantile: float
    share: float = 0.05
    """Half width of the 95 % interval over the value."""
    most: int = 20_000
    seconds: float = 120.0
    """Longest measurement; `least` observations are taken even so, if three times as long is enough for them."""
    floor: int = 1
    """Fewest observations, where the quantile itself needs fewer."""

    @property
    def least(self) -> int:
        """Fewest observations with which the interval is closed on both sides."""
        return max(least_observations(self.quantile), self.floor)

    def enough(self, values: Sequence[float], units: Sequence[object] | None = None) -> bool:
        return len(values) >= self.least and quantile_interval(values, self.quantile, units=units).share <= self.share

    def stop(self, values: Sequence[float], elapsed_s: float, units: Sequence[object] | None = None) -> bool:
        """To be asked after every observation; cheap between the checks, which are a tenth apart."""
        n = len(values)
        if n >= self.most or elapsed_s >= 3 * self.seconds:
            return True
        if n < self.least:
            return False
        if elapsed_s >= self.seconds:
            return True
        return n % max(self.least // 4, n // 10, 1) == 0 and self.enough(values, units)

    def text(self) -> str:
        return (
            f"until the {LEVEL:.0%} interval of p{100 * self.quantile:g} is within ±{self.share:.0%}, "
            f"at least {self.least} observations, at most {self.most} or {self.seconds:g} s"
        )


def least_observations(quantile: float, level: float = LEVEL) -> int:
    """Smallest n whose largest value is above the quantile (and smallest below it) with (1 + level) / 2."""
    tail = max(quantile, 1.0 - quantile)
    return math.ceil(math.log((1.0 - level) / 2.0) / math.log(tail))


def quantile_interval(
    values: Sequence[float] | Values,
    quantile: float,
    level: float = LEVEL,
    *,
    units: Sequence[object] | None = None,
) -> Interval:
    """Quantile of at least one value, with its distribution-free interval. `units`: whose each value is."""
    series = np.asarray(values, np.float64)
    ordered = np.sort(series)
    n = len(ordered)
    value = float(np.quantile(ordered, quantile))
    drift = 1.0 if units is None else _drift_time((series <= value).astype(np.float64), units)
    effective = n / max(correlation_time(series), drift)
    low, high = _rank_shares(max(int(effective), 1), quantile, level)
    lower = float(ordered[max(math.floor(low * n) - 1, 0)])
    upper = None if high > 1.0 else float(ordered[min(math.ceil(high * n) - 1, n - 1)])
    return Interval(value, min(lower, value), upper if upper is None else max(upper, value), n, effective)


def _rank_shares(n: int, quantile: float, level: float) -> tuple[float, float]:
    """Ranks (1-based) of the bounds over n; above 1 where no observation bounds the quantile from above."""
    cumulative = np.cumsum(_binomial(n, quantile))  # [k] = P(at most k of n lie below the quantile)
    tail = (1.0 - level) / 2.0
    low = int(np.searchsorted(cumulative, tail, side="right"))  # P(fewer than `low` lie below) <= tail
    high = int(np.searchsorted(cumulative, 1.0 - tail, side="left")) + 1
    return low / n, high / n if high <= n else 2.0


def _binomial(n: int, p: float) -> Values:
    """Probabilities of 0..n successes."""
    k = np.arange(n + 1)
    factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])  # logarithms
    logs = factorial[n] - factorial - factorial[::-1] + k * math.log(p) + (n - k) * math.log1p(-p)
    probabilities: Values = np.exp(logs)
    return probabilities


def _drift_time(below: Values, units: Sequence[object]) -> float:
    """Correlation time of whether values lie below the quantile [n] (0, 1), units coming again and again.

    What differs between units is as independent as can be; what is left within each has its own correlation time, and
    counts by its share of the variance.
    """
    kinds: dict[object, int] = {}
    places = np.array([kinds.setdefault(unit, len(kinds)) for unit in units])
    within = below - (np.bincount(places, below) / np.bincount(places))[places]
    whole = float(np.var(below))
    share = float(np.var(within)) / whole if whole else 0.0
    return 1.0 + share * (correlation_time(within) - 1.0)


def correlation_time(values: Values) -> float:
    """Observations that one independent observation costs; at least 1. Of a series in the order of time."""
    n = len(values)
    # Ranks: one slow outlier would otherwise hide the correlation of all the others.
    kinds, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    if n < 8 or len(kinds) < 2:
        return 1.0
    centred = (np.cumsum(counts) - (counts - 1) / 2)[places]
    centred -= centred.mean()
    size = 1 << (2 * n - 1).bit_length()
    spectrum = np.abs(np.fft.rfft(centred, size)) ** 2
    correlation = np.fft.irfft(spectrum, size)[: n // 2]
    correlation /= correlation[0]
    noise = 1.96 * math.sqrt(2.0 / n)
    time = 1.0
    for lag in range(1, len(correlation) - 1, 2):
        pair = float(correlation[lag] + correlation[lag + 1])
        if pair <= noise:
            break
        time += 2.0 * pair
    return min(max(time, 1.0), n / 2)


def bootstrap_interval(
    parts: Sequence[Sequence[float] | Values],
    statistic: Callable[..., float],
    *,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """A statistic of samples of equal length that belong together, row by row (paired): rows are drawn again.

    `statistic` takes the samples as arrays, one argument each.
    """
    arrays = [np.asarray(part, np.float64) for part in parts]
    n = len(arrays[0])
    value = float(statistic(*arrays))
    if n < 2:
        return Interval(value, value, None, n, float(n))
    random = np.random.default_rng(seed)
    drawn = np.array([statistic(*(a[i] for a in arrays)) for i in random.integers(0, n, (RESAMPLES, n))])
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), n, float(n))


def ratio_interval(slow: Sequence[float], fast: Sequence[float], rounds: Sequence[int] | None = None) -> Interval:
    """slow / fast of pairs that were measured beside each other: geometric mean of the pairs' ratios.

    `rounds`: in which pass over the same units each pair was measured; None: every pair is a round of its own. Pairs of
    a round share the machine's state, so that the interval (Student's t) is that of as many rounds as are independent.
    It is about these very units: others have other ratios.
    """
    logs = np.log(np.asarray(slow, np.float64)) - np.log(np.asarray(fast, np.float64))
    kinds, places = np.unique(np.arange(len(logs)) if rounds is None else np.asarray(rounds), return_inverse=True)
    means = np.bincount(places, logs) / np.bincount(places)
    value, m = float(means.mean()), len(kinds)
    effective = m / correlation_time(means)
    if effective < 2:
        return Interval(math.exp(value), math.exp(value), None, len(logs), effective)
    from scipy.stats import t

    half = float(t.ppf((1 + LEVEL) / 2, effective - 1)) * float(means.std(ddof=1)) / math.sqrt(effective)
    return Interval(math.exp(value), math.exp(value - half), math.exp(value + half), len(logs), effective)
