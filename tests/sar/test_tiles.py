"""Windows that cover a scene."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusar_edge.errors import InputError
from fusar_edge.sar.tiles import TileWindow, plan_tiles


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(8, 90), st.data())
def test_windows_cover_the_scene_stay_inside_and_overlap(
    width: int, height: int, tile: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, tile - 1 - tile // 8))
    windows = plan_tiles(width, height, tile, overlap)
    seen = np.zeros((height, width), bool)
    for w in windows:
        assert w.row_off >= 0
        assert w.col_off >= 0
        assert w.row_off + w.height <= height
        assert w.col_off + w.width <= width
        assert (w.height, w.width) == (min(tile, height), min(tile, width))
        seen[w.row_off : w.row_off + w.height, w.col_off : w.col_off + w.width] = True
    assert seen.all()
    assert len(set(windows)) == len(windows)
    for starts, side in (
        ({w.row_off for w in windows}, min(tile, height)),
        ({w.col_off for w in windows}, min(tile, width)),
    ):
        gaps = np.diff(sorted(starts))
        assert (gaps <= side - overlap).all()


def test_a_scene_smaller_than_a_tile_is_one_window_of_its_size() -> None:
    assert plan_tiles(268, 217) == [TileWindow(0, 0, 217, 268)]


def test_a_scene_of_exactly_one_tile_is_one_window() -> None:
    assert plan_tiles(504, 504) == [TileWindow(0, 0, 504, 504)]


def test_no_window_is_planned_that_another_already_covers() -> None:
    assert [w.col_off for w in plan_tiles(944, 504)] == [0, 440]
    assert [w.col_off for w in plan_tiles(945, 504)] == [0, 440, 441]


def test_a_window_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan_tiles(10, 10)[0].width = 3  # type: ignore[misc]  # the error is the test


@pytest.mark.parametrize(("size", "tile", "overlap"), [((0, 5), 4, 1), ((5, 5), 4, 4), ((5, 5), 0, 0), ((5, 5), 4, -1)])
def test_impossible_plans_are_refused(size: tuple[int, int], tile: int, overlap: int) -> None:
    with pytest.raises(InputError, match="px"):
        plan_tiles(*size, tile, overlap)
