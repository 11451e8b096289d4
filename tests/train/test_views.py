"""A view turns pixels and boxes together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusar_edge.data.truth import COORDINATE_SIZE, Target, Truth
from fusar_edge.train.dense import dense_targets
from fusar_edge.train.images import View, random_brightness, random_view

SIZE = 252


@given(st.booleans(), st.integers(0, 3), st.integers(20, 180), st.integers(20, 180), st.integers(20, 60))
def test_a_bright_box_is_where_the_turned_target_says(mirror: bool, turns: int, x: int, y: int, side: int) -> None:
    grey = np.zeros((SIZE, SIZE), np.uint8)
    grey[y : y + side, x : x + side] = 255
    scale = COORDINATE_SIZE / SIZE
    target = Target((x * scale, y * scale, (x + side) * scale, (y + side) * scale), "ship")
    view = View(0.05, 0.1, 0.85, mirror, turns)
    seen = view.pixels(grey, SIZE) > 0.5
    x1, y1, x2, y2 = (v / scale for v in view.target(target).box)
    rows, columns = np.nonzero(seen)
    expected = [max(y1, 0), min(y2, SIZE), max(x1, 0), min(x2, SIZE)]
    found = [rows.min(), rows.max() + 1, columns.min(), columns.max() + 1]
    assert np.allclose(found, expected, atol=2)


@given(st.integers(0, 2**32 - 1))
def test_a_random_view_cuts_through_no_target(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 440, 2)
    box = (corner[0], corner[1], corner[0] + 60, corner[1] + 40)
    truth = Truth((Target(box, "ship"),))
    seen = random_view(rng, truth).truth(truth)
    for target in seen.targets:
        x1, y1, x2, y2 = target.box
        inside = (min(x2, 504) - max(x1, 0)) * (min(y2, 504) - max(y1, 0))
        assert inside / ((x2 - x1) * (y2 - y1)) > 0.69


def test_brightness_stays_in_range() -> None:
    rng = np.random.default_rng(0)
    grey = random_brightness(rng, np.linspace(0, 1, 100, dtype=np.float32).reshape(10, 10))
    assert grey.dtype == np.float32
    assert 0 <= grey.min() <= grey.max() <= 1


def test_dense_targets_hold_the_centre_the_box_and_the_cover() -> None:
    truth = Truth((Target((0, 0, 112, 56), "ship"), Target((60, 10, 80, 30), "ship")))
    dense = dense_targets(truth, None, 9, ["ship"])
    assert dense["count"].nonzero()[0].tolist() == [1]
    assert dense["count"][1] == 2
    assert dense["box"][1] == pytest.approx([0, 0, 112 / 504, 56 / 504])
    assert dense["cover"][:3] == pytest.approx([1, 1, 0])
    assert dense["kind"][1] == 0
    assert not dense_targets(None, "T62", 9, ["T62"])["known"]
