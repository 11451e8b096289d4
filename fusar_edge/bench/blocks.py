"""A run as blocks of its parts, and what two runs' blocks say of each other; fusar_edge.bench.diff tells how."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fusar_edge.bench.observations import Observation, measured
from fusar_edge.bench.permutation import LEAST, p_value
from fusar_edge.bench.timing import LEAVES, REFERENCE

BLOCKS = 12
NOISE = 1.0
LEAST_STAGES = 4
"""Their median is not moved by one that changed."""
BLOCK_LENGTH = 3
QUIET = 0.1
"""What else the machine does only adds time: a stage that got slower is slower also where it was left alone most."""

Values = npt.NDArray[np.float64]
Series = dict[str, list[tuple[float, float]]]
"""Unit -> (at, ms), in the order of time."""


def by_part(observations: Iterable[Observation]) -> dict[tuple[str, str], Series]:
    found: dict[tuple[str, str], Series] = defaultdict(lambda: defaultdict(list))
    for one in measured(observations):
        if one.ms > 0 and not one.candidate:
            found[one.scenario, one.part][_unit(one)].append((one.at, one.ms))
    return found


def _unit(one: Observation) -> str:
    """Queries are numbered through; which tiles they hold repeats, but their time is the part's alone."""
    return "query" if one.part == "query" else one.unit_id


def part_of(key: tuple[str, str], before: Series, after: Series) -> Part | None:
    """None where no unit is in both runs."""
    units = [unit for unit in before if unit in after]
    if not units:
        return None
    usual = {unit: (_log_median(before[unit]) + _log_median(after[unit])) / 2 for unit in units}
    runs, quiet = [], []
    for series in (before, after):
        rows = sorted((at, math.log(ms) - usual[unit]) for unit in units for at, ms in series[unit])
        values = np.array([value for _, value in rows])
        runs.append(_blocks(values))
        quiet.append(float(np.quantile(values, QUIET)))
    usual_ms = [math.exp(float(np.mean([_log_median(run[unit]) for unit in units]))) for run in (before, after)]
    return Part(*key, runs[0], runs[1], usual_ms[0], usual_ms[1], quiet[1] - quiet[0])


def _log_median(series: Sequence[tuple[float, float]]) -> float:
    return float(np.median(np.log([ms for _, ms in series])))


def _blocks(values: Values) -> Values:
    """Medians of at most BLOCKS blocks of consecutive values, each of at least BLOCK_LENGTH."""
    count = max(min(BLOCKS, len(values) // BLOCK_LENGTH), 1)
    return np.array([np.median(block) for block in np.array_split(values, count)])


@dataclass(frozen=True, eq=False)
class Part:
    scenario: str
    part: str
    before: Values
    """[blocks] medians of log ratios to the unit's usual time."""
    after: Values
    before_ms: float
    after_ms: float
    quiet: float
    """Logarithm of the ratio in the quietest moments of both runs: the QUIET quantile of each."""

    def exchanged(self) -> Part:
        return Part(self.scenario, self.part, self.after, self.before, self.after_ms, self.before_ms, -self.quiet)


@dataclass(frozen=True, eq=False)
class Noise:
    """What the machine did in one scenario of both runs."""

    common: tuple[Values, Values] | None = None
    """[blocks] of the first and of the second run: what met all stages alike. None where too few have such blocks."""
    alone: float = 0.0
    """Spread of the kernel's blocks, the larger of both runs'; 0 without a kernel."""
    beside: float = 0.0
    """The same beside `common`: how differently stages are met."""

    def exchanged(self) -> Noise:
        return Noise(self.common and self.common[::-1], self.alone, self.beside)


def testable(part: Part) -> bool:
    return min(len(part.before), len(part.after)) >= LEAST


def noise_of(parts: Sequence[Part]) -> Noise:
    """From the stages and the kernel of one scenario, block by block."""
    full = [p for p in parts if p.part in (*LEAVES, REFERENCE) and len(p.before) == len(p.after) == BLOCKS]
    kernel = next((p for p in parts if p.part == REFERENCE), None)
    alone = max((_spread(blocks) for blocks in (kernel.before, kernel.after)), default=0.0) if kernel else 0.0
    if len(full) < LEAST_STAGES:
        return Noise(None, alone)
    common = np.median([p.before for p in full], axis=0), np.median([p.after for p in full], axis=0)
    if kernel not in full:
        return Noise(common, alone, alone)
    assert kernel is not None
    beside = max(_spread(kernel.before - common[0]), _spread(kernel.after - common[1]))
    return Noise(common, alone, beside)


def _spread(blocks: Values) -> float:
    return float(np.std(blocks, ddof=1)) if len(blocks) > 1 else 0.0


def p_slower(part: Part, margin: float, allowance: float, noise: Noise, random: np.random.Generator) -> float:
    """Smaller p of both tests, doubled; 1 where the part is not slower by the margin as measured, and when quiet."""
    if min(part.after.mean() - part.before.mean(), part.quiet) <= margin:
        return 1.0
    p = p_value(part.before, part.after, margin + allowance + NOISE * noise.alone, random)
    if noise.common is not None and len(part.before) == len(part.after) == BLOCKS:
        first, second = part.before - noise.common[0], part.after - noise.common[1]
        p = min(p, p_value(first, second, margin + NOISE * noise.beside, random))
    return min(2.0 * p, 1.0)


def reference_ratio(first: dict[Any, Series], second: dict[Any, Series]) -> float | None:
    times = []
    for run in (first, second):
        units = [unit for (_, part), by_unit in run.items() if part == REFERENCE for unit in by_unit.values()]
        series = [ms for unit in units for _, ms in unit]
        if not series:
            return None
        times.append(float(np.median(series)))
    return times[1] / times[0]
