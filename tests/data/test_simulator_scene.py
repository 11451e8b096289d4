"""One simulated scene: its truth is where its echoes are."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from fusar_edge.data.simulator import SimulatedScene, simulate_scene
from fusar_edge.data.simulator.embeddings import anchors_from_classes, prototypes
from fusar_edge.data.simulator.landcover import FOREST, SEA, URBAN, is_water
from fusar_edge.data.simulator.ships import Ship, draw_count, draw_ship
from fusar_edge.data.tasks import parse_answer, questions_from_truth
from fusar_edge.data.truth import CAPTION_FIELDS


def inside_polygon(corners: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Crossing-number test, independent of the simulator's own hull formula."""
    inside = np.zeros(np.broadcast(y, x).shape, bool)
    for (y1, x1), (y2, x2) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y1 != y2:
            inside ^= ((y1 > y) != (y2 > y)) & (x < (x2 - x1) * (y - y1) / (y2 - y1) + x1)
    return inside


def hull_mask(ship: Ship, shape: tuple[int, int]) -> np.ndarray:
    return inside_polygon(ship.outline(), np.arange(shape[0])[:, None] + 0.5, np.arange(shape[1])[None, :] + 0.5)


def scenes_with_ships(kind: str, number: int) -> list[SimulatedScene]:
    scenes = [simulate_scene(seed, 192, kind=kind, count=4) for seed in range(number)]
    return [scene for scene in scenes if scene.ships]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_scene() -> None:
    first, again, other = (simulate_scene(seed, 160, kind="harbour", count=2) for seed in (5, 5, 6))
    assert first.power.tobytes() == again.power.tobytes()
    assert first.truth == again.truth
    assert first.anchors.features.tobytes() == again.anchors.features.tobytes()
    assert first.power.tobytes() != other.power.tobytes()


@pytest.mark.parametrize("kind", ["coast", "harbour", "strait"])
def test_no_ship_lies_on_land(kind: str) -> None:
    scenes = scenes_with_ships(kind, 25)
    assert len(scenes) > 10
    for scene in scenes:
        water = is_water(scene.landcover)
        assert (~water).any()
        for ship in scene.ships:
            assert water[hull_mask(ship, water.shape)].all()


@pytest.mark.parametrize("kind", ["open sea", "harbour"])
def test_ships_do_not_overlap(kind: str) -> None:
    for scene in scenes_with_ships(kind, 15):
        hulls = sum(hull_mask(ship, scene.power.shape).astype(int) for ship in scene.ships)
        assert np.max(hulls) <= 1


def test_a_box_is_tight_on_its_hull() -> None:
    for heading in np.linspace(0, 6, 13):
        ship = Ship(60.0, 55.0, 70.0, 14.0, float(heading))
        rows, cols = np.nonzero(hull_mask(ship, (120, 120)))
        x1, y1, x2, y2 = ship.box()
        found = (cols.min(), rows.min(), cols.max() + 1, rows.max() + 1)
        np.testing.assert_allclose(found, (x1, y1, x2, y2), atol=1.6)  # the pointed bow covers no pixel centre


def test_the_two_hull_formulas_agree() -> None:
    y, x = np.random.default_rng(0).uniform(0, 100, (2, 5000))
    ship = Ship(50.0, 48.0, 60.0, 17.0, 0.7)
    assert (ship.inside(y, x) == inside_polygon(ship.outline(), y, x)).mean() > 0.999


def test_the_echo_of_a_ship_is_on_its_hull() -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        power = np.zeros((128, 128), np.float32)
        ship = Ship(60.0, 70.0, 50.0, 9.0, float(rng.uniform(0, 6)))
        draw_ship(rng, power, ship, -3.0, 1, taper=1.0)
        centres = np.arange(128) + 0.5
        hull = ship.inside(centres[:, None], centres[None, :], margin=1.5)
        assert power[hull].sum() / power.sum() > 0.97


def test_a_ship_stands_out_from_the_sea() -> None:
    for scene in scenes_with_ships("open sea", 15):
        hulls = np.any([hull_mask(ship, scene.power.shape) for ship in scene.ships], axis=0)
        assert scene.power[hulls].mean() > 3 * scene.power[~hulls].mean()


def test_truth_is_in_504_pixel_coordinates_whatever_the_size() -> None:
    scene = simulate_scene(3, (126, 252), kind="open sea", count=3)
    assert scene.power.shape == (126, 252)
    assert len(scene.boxes) == 3
    for (x1, y1, x2, y2), target in zip(scene.boxes, scene.truth.targets, strict=True):
        np.testing.assert_allclose(target.box, (2 * x1, 4 * y1, 2 * x2, 4 * y2))


def test_an_open_sea_has_neither_land_nor_anchors() -> None:
    scene = simulate_scene(1, 128, kind="open sea", count=0)
    assert (scene.landcover == SEA).all()
    assert scene.anchors.features.shape == (0, 64)
    assert scene.truth.targets == ()


def test_ships_are_not_drawn_on_inland_rivers() -> None:
    assert all(simulate_scene(seed, 128, 1.0, kind="inland").truth.targets == () for seed in range(12))


def test_counts_are_spread_as_in_ssdd() -> None:
    rng = np.random.default_rng(0)
    share = np.bincount([draw_count(rng) for _ in range(4000)], minlength=21) / 4000
    assert 0.55 < share[1] < 0.65
    assert share[2] > share[3] > share[6]
    assert share[10:].sum() > 0.002


def test_a_scene_has_all_caption_fields_in_short_phrases() -> None:
    for seed in range(30):
        scene = simulate_scene(seed, 96)
        fields = scene.truth.fields
        assert fields is not None
        assert tuple(fields) == CAPTION_FIELDS
        assert all(0 < len(text.split()) < 12 for text in fields.values())
        assert (fields["Distribution"] == "No ships") == (not scene.truth.targets)
        assert scene.truth.sentence is not None
        assert scene.truth.sentence.startswith("A SAR image of ")
        assert all(parse_answer(task, answer).ok for task, _, answer in questions_from_truth(scene.truth))


def test_anchors_are_unit_vectors_near_land() -> None:
    scene = simulate_scene(8, 180, kind="coast")
    features, positions = scene.anchors.features, scene.anchors.positions
    assert features.dtype == positions.dtype == np.float32
    assert 0 < len(features) == len(positions) < 81
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)
    pixels = np.round(positions * 179).astype(int)
    for y, x in pixels:
        near = scene.landcover[max(y - 13, 0) : y + 14, max(x - 13, 0) : x + 14]
        assert (near != SEA).any()


def test_anchors_of_one_class_are_alike_and_of_two_classes_are_not() -> None:
    classes = np.full((100, 100), FOREST, np.uint8)
    classes[:, 50:] = URBAN
    anchors = anchors_from_classes(np.random.default_rng(1), classes, 5)
    left = anchors.features[anchors.positions[:, 1] < 0.3]
    right = anchors.features[anchors.positions[:, 1] > 0.7]
    assert (left @ left.T).min() > 0.7
    assert (left @ right.T).max() < 0.5
    other = anchors_from_classes(np.random.default_rng(2), classes, 5)
    assert (left @ other.features[other.positions[:, 1] < 0.3].T).min() > 0.7


def test_class_prototypes_are_the_same_in_every_process() -> None:
    np.testing.assert_array_equal(prototypes(), prototypes.__wrapped__())


@pytest.mark.parametrize(
    "arguments",
    [
        {"size": 63},
        {"size": (64, 9000)},
        {"kind": "moon"},
        {"count": -1},
        {"looks": 0},
        {"nodes": 0},
        {"spacing_m": 0.0},
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match=r"size|kind|count|spacing_m"):
        simulate_scene(0, **arguments)


def test_importing_the_simulator_loads_no_heavy_package() -> None:
    code = (
        "import sys, fusar_edge.data.simulator as s; s.simulate_scene(0, 64);"
        "print([m for m in ('torch', 'rasterio', 'pyproj', 'zarr', 'PIL', 'onnxruntime') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
