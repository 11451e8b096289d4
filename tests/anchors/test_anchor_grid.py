from __future__ import annotations

import numpy as np
import pytest

from fusar_edge.anchors.grid import grid_pixels, grid_positions


def test_the_grid_includes_the_corners_and_runs_row_by_row() -> None:
    positions = grid_positions(3)
    assert positions.dtype == np.float32
    assert positions.tolist() == [[y, x] for y in (0, 0.5, 1) for x in (0, 0.5, 1)]


def test_a_single_node_stands_in_the_middle() -> None:
    assert grid_positions(1).tolist() == [[0.5, 0.5]]
    assert grid_pixels(1, 9, 5).tolist() == [[4.5, 2.5]]


def test_outer_nodes_stand_on_the_centres_of_the_outer_pixels_of_the_window() -> None:
    pixels = grid_pixels(18, 504, 504, row=1000, col=2000)
    assert pixels[0].tolist() == [1000.5, 2000.5]
    assert pixels[-1].tolist() == [1503.5, 2503.5]


def test_min_max_normalising_the_pixels_gives_the_positions_back() -> None:
    pixels = grid_pixels(18, 504, 300, row=7, col=9)
    low, high = pixels.min(axis=0), pixels.max(axis=0)
    np.testing.assert_allclose((pixels - low) / (high - low), grid_positions(18), atol=1e-7)


def test_a_grid_without_nodes_is_refused() -> None:
    with pytest.raises(ValueError, match="nodes is 0"):
        grid_positions(0)
