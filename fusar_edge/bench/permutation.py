"""Tests that assume no distribution, and the correction for doing many of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

LEAST = 8
"""2 x 8 values have 12,870 arrangements: enough for a small p after Holm over some 60 tests."""
PERMUTATIONS = (2_000, 100_000)
"""The second number only where the first leaves it open."""
CLEAR = 0.01

Values = npt.NDArray[np.float64]


def p_value(before: Values, after: Values, margin: float, random: np.random.Generator) -> float:
    """Chance of such means if mean(after) - mean(before) is `margin` at most; one-sided.

    Values are exchanged between the groups at random (Good, Permutation, Parametric and Bootstrap Tests, 3rd ed.,
    section 3.3). 1 where either group is too small to tell.
    """
    if min(len(before), len(after)) < LEAST:
        return 1.0
    pooled = np.concatenate([before, after - margin])
    n = len(before)
    seen = pooled[n:].mean() - pooled[:n].mean()
    if seen <= 0:  # p is above one half
        return 1.0
    p = 1.0
    for count in PERMUTATIONS:
        order = np.argsort(random.random((count, len(pooled)), dtype=np.float32), axis=1)
        sums = pooled[order[:, :n]].sum(1)
        drawn = (pooled.sum() - sums) / (len(pooled) - n) - sums / n
        p = float((np.count_nonzero(drawn >= seen - 1e-12) + 1) / (count + 1))
        if p > 3 * CLEAR:
            break
    return p


def holm(p_values: Sequence[float], rate: float) -> list[bool]:
    """Which hypotheses are rejected, with the chance of any false rejection at most `rate` (Holm, 1979)."""
    rejected = [False] * len(p_values)
    for step, index in enumerate(np.argsort(p_values)):
        if p_values[index] > rate / (len(p_values) - step):
            break
        rejected[index] = True
    return rejected
