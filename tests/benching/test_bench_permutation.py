"""The tests behind `bench diff`: p values are what they claim, and many of them are corrected."""

from __future__ import annotations

import numpy as np
import pytest

from fusar_edge.bench.permutation import LEAST, holm, p_value


def test_p_values_of_equal_groups_are_small_as_seldom_as_they_say() -> None:
    random = np.random.default_rng(1)
    ps = [p_value(random.normal(size=12), random.normal(size=12), 0.0, random) for _ in range(400)]
    for level in (0.02, 0.1):
        assert np.mean(np.array(ps) <= level) <= level + 2.5 * np.sqrt(level * (1 - level) / 400)


def test_the_p_value_is_that_of_all_arrangements() -> None:
    """Two groups that do not overlap: one arrangement of C(16, 8) = 12,870."""
    p = p_value(np.arange(8.0), np.arange(8.0) + 100, 0.0, np.random.default_rng(0))
    assert p == pytest.approx(1 / 12_870, rel=0.6)


def test_the_margin_is_given_away_first() -> None:
    random = np.random.default_rng(2)
    first, second = random.normal(0, 0.02, 12), random.normal(0.18, 0.02, 12)
    assert p_value(first, second, 0.05, random) < 1e-3
    assert p_value(first, second, 0.18, random) > 0.05
    assert p_value(first, second, 0.25, random) == 1.0
    assert p_value(first[: LEAST - 1], second, 0.0, random) == 1.0


def test_holm_rejects_as_in_the_textbook() -> None:
    """Step-down: 0.01 <= 0.05/4, 0.013 <= 0.05/3, 0.03 > 0.05/2."""
    assert holm([0.03, 0.01, 0.04, 0.013], 0.05) == [False, True, False, True]
    assert holm([0.04, 0.02, 0.03], 0.05) == [False] * 3
    assert holm([], 0.05) == []
