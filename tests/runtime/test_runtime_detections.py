from __future__ import annotations

import numpy as np
import pytest

from fusar_edge.runtime.detections import Detection, merged, scene_box, tile_box, touches_inner_edge
from fusar_edge.runtime.rings import geometry_from_ring
from fusar_edge.sar.tiles import TileWindow


def found(box: tuple, tile: int = 0, confidence: float = 0.5, cut: bool = False, label: str = "ship") -> Detection:
    return Detection(box, label, confidence, tile, cut)


def test_doubles_of_two_tiles_become_one_and_the_more_confident_stays() -> None:
    kept = merged([found((0, 0, 10, 10), 0, 0.5), found((1, 1, 11, 11), 1, 0.9), found((30, 30, 40, 40), 1)])
    assert [(d.box, d.seen) for d in kept] == [((1, 1, 11, 11), 2), ((30, 30, 40, 40), 1)]


def test_a_whole_box_wins_over_the_part_that_a_tile_edge_left_of_it() -> None:
    kept = merged([found((0, 0, 4, 10), 0, 0.99, cut=True), found((0, 0, 20, 10), 1, 0.5)])
    assert [(d.box, d.seen) for d in kept] == [((0, 0, 20, 10), 2)]


def test_boxes_inside_each_other_stay_where_one_tile_said_both_and_so_do_other_classes() -> None:
    inside = [found((0, 0, 4, 10)), found((0, 0, 20, 10))]
    assert len(merged(inside)) == 2
    assert len(merged([found((0, 0, 10, 10), 0), found((0, 0, 10, 10), 1, label="plane")])) == 2


def test_a_box_that_the_model_repeats_is_one_target() -> None:
    assert [d.seen for d in merged([found((0, 0, 10, 10))] * 5)] == [5]
    assert merged([]) == []


def test_merging_does_not_depend_on_the_order_of_the_boxes() -> None:
    r = np.random.default_rng(0)
    corners = r.uniform(0, 60, (60, 2))
    boxes = [found((*c, *(c + r.uniform(5, 20, 2))), int(r.integers(3)), float(r.random())) for c in corners]
    one = merged(boxes)
    assert merged([boxes[i] for i in r.permutation(60)]) == one
    assert sum(d.seen for d in one) == 60


def test_a_box_goes_to_the_scene_and_back() -> None:
    window = TileWindow(100, 200, 50, 300)
    box = (12.0, 30.0, 400.0, 504.0)
    there = scene_box(box, window, 504)
    assert there == pytest.approx((200 + 12 / 504 * 300, 100 + 30 / 504 * 50, 200 + 400 / 504 * 300, 150))
    assert tile_box(there, window, 504) == pytest.approx(box)


@pytest.mark.parametrize(
    ("box", "cut"),
    [((0, 20, 10, 30), False), ((90, 20, 100, 30), True), ((20, 90, 30, 100), False), ((50, 0, 60, 10), False)],
)
def test_only_an_edge_inside_the_scene_cuts(box: tuple, cut: bool) -> None:
    assert touches_inner_edge(box, TileWindow(0, 0, 100, 100), width=300, height=100) is cut
    x1, y1, x2, y2 = box
    assert touches_inner_edge((y1, x1, y2, x2), TileWindow(0, 0, 100, 100), width=100, height=300) is cut


def test_a_ring_around_the_pole_is_cut_into_the_range_of_longitudes() -> None:
    ring = [[float(lon), 80.0] for lon in range(-90, 271, 30)] + [[270.0, 90.0], [-90.0, 90.0], [-90.0, 80.0]]
    geometry = geometry_from_ring(ring)
    points = np.concatenate([np.array(part[0]) for part in geometry["coordinates"]])
    assert geometry["type"] == "MultiPolygon"
    assert (points[:, 0].min(), points[:, 0].max()) == (-180, 180)


def test_a_clockwise_ring_is_turned() -> None:
    geometry = geometry_from_ring([[0, 0], [0, 1], [1, 1], [1, 0], [0, 0]])
    assert geometry == {"type": "Polygon", "coordinates": [[[1, 0], [1, 1], [0, 1], [0, 0], [1, 0]]]}
