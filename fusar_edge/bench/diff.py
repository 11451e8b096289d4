"""What got slower between two runs, with the chance of a false alarm kept small over all parts together.

For each part of each scenario that both runs have:

1. Every time becomes the logarithm of its ratio to what the same unit (tile, question) took in both runs: units differ
   by factors, and both runs have the same ones.
2. A run is cut into blocks of consecutive observations, and each block is its median. What hangs together for a moment
   (a hot core, another process) is inside one block, so blocks are nearly independent.
3. The blocks of both runs are exchanged at random (permutation test, one-sided) after the threshold was taken off the
   second run's: p is the chance of such a difference if the part is slower by the threshold at most. It is done twice,
   and the smaller p, doubled, counts: with the blocks as they are, less what the reference kernel between the tiles
   says that the machine got slower; and with each block less the median of all stages at that time, which takes out
   what met all of them alike. The second finds a smaller change of one stage, the first a change of all. A part that
   is not slower by the threshold in its usual and in its quietest moments is never an alarm.
4. Holm's procedure over all parts and scenarios: the chance of even one false alarm in a diff is at most ALARM_RATE.

What no statistics can tell apart: other work on the machine that meets one stage more than the others, for as long as
a run takes. How unsteady the machine was is seen in the reference kernel, which does the same at all times: the
threshold grows by the spread of its blocks, and above UNSTEADY nothing is judged at all. Nor is it where a run's
conditions say that other work disturbed it: caches and memory are shared, and the small kernel does not feel that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from fusar_edge.bench.blocks import (
    BLOCK_LENGTH,
    NOISE,
    Part,
    Series,
    by_part,
    noise_of,
    p_slower,
    part_of,
    reference_ratio,
    testable,
)
from fusar_edge.bench.observations import Observation
from fusar_edge.bench.permutation import LEAST, holm
from fusar_edge.bench.timing import LEAVES, MADE_OF, REFERENCE
from fusar_edge.errors import InputError

THRESHOLD = 1.05
ALARM_RATE = 0.01
"""Of a diff of two runs of the same thing, all parts together."""
UNSTEADY = 0.10
"""Standard deviation of the logarithm of the kernel's blocks: by so much the machine itself moves within a run."""
FLOOR_MS = 0.05
"""Differences below it are nobody's concern, and clocks and caches make them."""
Values = npt.NDArray[np.float64]


class Change(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One part of one scenario in both runs."""

    scenario: str
    part: str
    before_ms: float
    """Median of each tile or question; of these the geometric mean."""
    after_ms: float
    ratio: float
    """After over before, unit by unit, median; as measured."""
    low: float
    """Interval of the ratio, LEVEL 0.95, of this part alone."""
    high: float
    p_slower: float
    """One-sided, before Holm. 1 where it was not tested."""
    verdict: str
    """slower | faster | same | too few (observations) | unsteady (machine)"""
    blocks: tuple[int, int]


class Diff(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Outcome of `bench diff`."""

    threshold: float
    alarm_rate: float
    reference_ratio: float | None
    """The machine itself, after over before; None where a run has no reference kernel."""
    unsteadiness: float
    """Largest spread of the kernel's blocks within a run (standard deviation of the logarithm)."""
    disturbed: tuple[str, ...]
    """Conditions under which nothing is judged."""
    changes: tuple[Change, ...]
    culprits: tuple[str, ...]
    """Slower parts that hold no other slower part: what to look at. `scenario: part`."""
    notes: tuple[str, ...] = ()

    @property
    def comparable(self) -> bool:
        """The machine was steady enough, and left alone enough, to judge anything."""
        return self.unsteadiness <= UNSTEADY and not self.disturbed

    @property
    def alarm(self) -> bool:
        return any(change.verdict == "slower" for change in self.changes)


def diff(
    before: Iterable[Observation],
    after: Iterable[Observation],
    threshold: float = THRESHOLD,
    *,
    disturbed: Sequence[str] = (),
    seed: int = 0,
) -> Diff:
    """Compare two runs. InputError where they share no part, or `threshold` is not above 1.

    `disturbed`: what was wrong with either run's conditions (fusar_edge.bench.conditions.disturbances).
    """
    if not threshold > 1.0:
        raise InputError(f"--threshold {threshold:g}: give a ratio above 1, such as {THRESHOLD:g}")
    first, second = by_part(before), by_part(after)
    shared = [key for key in first if key in second]
    reference = reference_ratio(first, second)
    keys = [key for key in shared if key[1] != REFERENCE]
    if not keys:
        raise InputError("the two runs share no scenario and part: run `fusar-edge bench` with the same --scenario")
    parts = [part for key in shared if (part := part_of(key, first[key], second[key])) is not None]
    noise = {name: noise_of([part for part in parts if part.scenario == name]) for name in {p.scenario for p in parts}}
    unsteady = max(one.alone for one in noise.values())
    parts = [part for part in parts if part.part != REFERENCE]
    random = np.random.default_rng(seed)
    margin = math.log(threshold)
    allowance = max(math.log(reference), 0.0) if reference else 0.0
    slower = [p_slower(part, margin, allowance, noise[part.scenario], random) for part in parts]
    faster = [p_slower(part.exchanged(), margin, 0.0, noise[part.scenario].exchanged(), random) for part in parts]
    worse, better = holm(slower, ALARM_RATE), holm(faster, ALARM_RATE)
    changes = []
    for part, p, is_slower, is_faster in zip(parts, slower, worse, better, strict=True):
        visible = abs(part.after_ms - part.before_ms) >= FLOOR_MS
        verdict = "slower" if is_slower and visible else "faster" if is_faster and visible else "same"
        verdict = verdict if testable(part) else "too few"
        changes.append(_change(part, p, "unsteady" if disturbed or unsteady > UNSTEADY else verdict, random))
    changes.sort(key=lambda change: (change.verdict != "slower", -change.ratio))
    return Diff(
        threshold=threshold,
        alarm_rate=ALARM_RATE,
        reference_ratio=reference,
        unsteadiness=unsteady,
        disturbed=tuple(disturbed),
        changes=tuple(changes),
        culprits=culprits(changes),
        notes=tuple(_notes(first, second, shared, parts, len(keys), unsteady)),
    )


def culprits(changes: Sequence[Change]) -> tuple[str, ...]:
    """Slower parts that are not slower because of another: leaves first, what holds them only where no leaf is."""
    found = []
    for scenario in dict.fromkeys(change.scenario for change in changes):
        slow = {change.part for change in changes if change.scenario == scenario and change.verdict == "slower"}
        leaves = [part for part in LEAVES if part in slow]
        held = [part for part, holds in MADE_OF.items() if part in slow and not _explained(holds, leaves)]
        found += [f"{scenario}: {part}" for part in (*leaves, *held)]
    return tuple(found)


def _explained(holds: str, leaves: Sequence[str]) -> bool:
    return bool(leaves) if holds == "all" else any(part in leaves for part in holds.split(", "))


def _change(part: Part, p: float, verdict: str, random: np.random.Generator) -> Change:
    draws = [
        np.mean(side[random.integers(0, len(side), (2000, len(side)))], axis=1) for side in (part.before, part.after)
    ]
    low, high = np.exp(np.quantile(draws[1] - draws[0], [0.025, 0.975]))
    return Change(
        scenario=part.scenario,
        part=part.part,
        before_ms=part.before_ms,
        after_ms=part.after_ms,
        ratio=float(np.exp(part.after.mean() - part.before.mean())),
        low=float(low),
        high=float(high),
        p_slower=p,
        verdict=verdict,
        blocks=(len(part.before), len(part.after)),
    )


def _notes(
    first: dict[Any, Series],
    second: dict[Any, Series],
    shared: Sequence[Any],
    parts: Sequence[Part],
    wanted: int,
    unsteady: float,
) -> list[str]:
    notes = []
    for name, run in (("first", first), ("second", second)):
        alone = sorted({f"{scenario}: {part}" for scenario, part in run if (scenario, part) not in shared})
        if alone:
            notes.append(f"only in the {name} run: {', '.join(alone)}")
    if len(parts) < wanted:
        notes.append(f"{wanted - len(parts)} parts have no tile or question in common: give both runs the same --scene")
    if unsteady > UNSTEADY:
        notes.append(f"the machine was too unsteady to judge: the kernel moved by ±{unsteady:.0%} within a run")
    elif NOISE * unsteady > math.log(THRESHOLD):
        notes.append(f"the machine moved by ±{unsteady:.1%} within a run: smaller changes are not judged")
    few = sorted({f"{p.scenario}: {p.part}" for p in parts if not testable(p)})
    if few:
        need = LEAST * BLOCK_LENGTH
        notes.append(f"fewer than {need} observations, not tested: {', '.join(few)}")
    return notes
