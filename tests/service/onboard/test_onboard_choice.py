from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from fusar_edge.service.onboard.choice import Candidate, chosen, ranked

HEAD = 45.0
KINDS = ((8.0, 7.0), (2.0, 3.0), (1.0, 60.0), (4.0, 0.3))
"""Worth and bytes of a detection, a count, a caption and a summary."""


def measured(some: Sequence[Candidate]) -> int:
    """Costs that add up, each scene's head among them."""
    return math.ceil(sum(c.cost for c in some) + HEAD * len({c.scene for c in some}))


def drawn(rng: np.random.Generator, count: int, scenes: int) -> list[Candidate]:
    """Records as they come: kinds, confidences, priorities and ages mixed."""
    priorities = 2.0 ** rng.uniform(-2, 2, scenes)
    kinds = rng.integers(len(KINDS), size=count)
    return [
        Candidate(
            i,
            str(scene := int(rng.integers(scenes))),
            KINDS[kind][0] * float(rng.uniform(0.2, 1.0) * priorities[scene]),
            KINDS[kind][1] * float(rng.uniform(0.7, 1.3)),
        )
        for i, kind in enumerate(kinds)
    ]


def best_worth(candidates: Sequence[Candidate], budget: int) -> float:
    """The knapsack's exact answer, by trying every subset."""
    count = len(candidates)
    picks = (np.arange(1 << count)[:, None] >> np.arange(count)) & 1
    cost = picks @ np.array([c.cost for c in candidates])
    for scene in {c.scene for c in candidates}:
        cost += HEAD * picks[:, [c.scene == scene for c in candidates]].any(axis=1)
    return float((picks @ np.array([c.worth for c in candidates]))[np.ceil(cost) <= budget].max())


def test_the_choice_reaches_most_of_the_exact_knapsack() -> None:
    rng = np.random.default_rng(3)
    shares = []
    for _ in range(150):
        candidates = drawn(rng, 12, int(rng.integers(1, 5)))
        budget = int(rng.uniform(60, 350))
        taken = chosen(candidates, HEAD, budget, measured)
        assert measured(taken) <= budget
        exact = best_worth(candidates, budget)
        if exact:
            shares.append(sum(c.worth for c in taken) / exact)
    assert len(shares) > 120
    assert max(shares) <= 1.0 + 1e-9
    assert min(shares) > 0.85  # 0.884 is the least of these cases; 97 % of them are exact
    assert np.mean(shares) > 0.995  # 0.9987


def test_one_large_record_wins_over_small_ones_that_pay_better_but_fill_nothing() -> None:
    small, large = Candidate(0, "a", 1.0, 1.0), Candidate(1, "a", 50.0, 100.0)
    assert chosen([small, large], HEAD, 145, measured) == [large]


def test_a_scene_is_opened_only_where_its_records_pay_for_its_head() -> None:
    rich = [Candidate(i, "rich", 8.0, 7.0) for i in range(10)]
    poor = [Candidate(10, "poor", 9.0, 7.0)]
    assert [c.scene for c in ranked([*poor, *rich], HEAD)][-1] == "poor"
    assert {c.scene for c in chosen([*poor, *rich], HEAD, 115, measured)} == {"rich"}


def test_everything_goes_where_everything_fits() -> None:
    candidates = drawn(np.random.default_rng(1), 200, 7)
    assert sorted(c.id for c in chosen(candidates, HEAD, 100_000, measured)) == list(range(200))


def test_nothing_is_chosen_where_nothing_fits() -> None:
    assert chosen(drawn(np.random.default_rng(1), 20, 3), HEAD, 30, measured) == []


@pytest.mark.parametrize("budget", [60, 200, 1000, 4000])
def test_the_rest_of_the_budget_is_used_up_to_less_than_the_smallest_record_left(budget: int) -> None:
    candidates = drawn(np.random.default_rng(budget), 400, 9)
    taken = chosen(candidates, HEAD, budget, measured)
    open_ = {c.scene for c in taken}
    left = [c for c in candidates if c not in taken and c.scene in open_]
    assert not [c for c in left if measured([*taken, c]) <= budget]
