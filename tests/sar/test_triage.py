"""The pre-screen of tiles: what it leaves out, and what it must not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusar_edge.data.simulator import simulate_scene
from fusar_edge.sar.radiometry import DEFAULT_RADIOMETRY, grey_from_values
from fusar_edge.sar.scene import TileImage, open_scene
from fusar_edge.sar.tiles import TileWindow
from fusar_edge.sar.triage import verdict


def tile(grey: np.ndarray, valid: np.ndarray | None = None) -> TileImage:
    valid = np.ones(grey.shape, bool) if valid is None else valid
    return TileImage(np.where(valid, grey, 0).astype(np.float32), valid)


def sea(seed: int = 0, looks: float = 4.0, db: float = -22.0, size: int = 504) -> np.ndarray:
    """Grey of plain speckle."""
    power = 10 ** (db / 10) * np.random.default_rng(seed).gamma(looks, 1 / looks, (size, size))
    return np.sqrt(power)


def simulated(seed: int, **more: Any) -> np.ndarray:
    return grey_from_values(simulate_scene(seed, 504, **more).power, "power", DEFAULT_RADIOMETRY)


def test_without_a_valid_pixel_there_is_nothing_to_ask_about() -> None:
    nothing = tile(sea(), np.zeros((504, 504), bool))
    assert [verdict(nothing, mode).reason for mode in ("cfar", "nodata", "off")] == ["nodata"] * 3


@pytest.mark.parametrize("mode", ["nodata", "off"])
def test_without_the_pre_screen_one_valid_pixel_is_enough(mode: Any) -> None:
    valid = np.zeros((504, 504), bool)
    valid[7, 9] = True
    assert verdict(tile(sea(), valid), mode).keep


@pytest.mark.parametrize("looks", [1, 4, 20])
@pytest.mark.parametrize("db", [-30.0, -20.0, -13.0])
def test_plain_sea_of_any_looks_and_level_is_left_out(looks: int, db: float) -> None:
    judged = [verdict(tile(sea(seed, looks, db))) for seed in range(4)]
    assert [(j.keep, j.reason) for j in judged] == [(False, "triage")] * 4


@pytest.mark.parametrize("looks", [1, 4, 20])
@pytest.mark.parametrize("place", [(250, 250), (0, 30), (503, 503)], ids=["middle", "edge", "corner"])
def test_a_boat_of_three_by_two_pixels_is_seen_wherever_it_lies(looks: int, place: tuple[int, int]) -> None:
    grey = sea(1, looks)
    row, col = (min(at, 504 - n) for at, n in zip(place, (2, 3), strict=True))
    grey[row : row + 2, col : col + 3] = 10 ** (-3 / 20)
    judged = verdict(tile(grey))
    assert (judged.keep, judged.reason, judged.candidates) == (True, "cfar", 1)


@pytest.mark.parametrize(("rows", "cols", "contrast_db"), [(12, 60, 5.0), (40, 80, 2.0)])
def test_a_ship_of_low_contrast_is_seen_by_its_size(rows: int, cols: int, contrast_db: float) -> None:
    grey, brighter = sea(2, looks=1), sea(3, looks=1, db=-22.0 + contrast_db)
    grey[100 : 100 + rows, 200 : 200 + cols] = brighter[100 : 100 + rows, 200 : 200 + cols]
    assert not verdict(tile(sea(2, looks=1))).keep
    assert verdict(tile(grey)).reason == "cfar"


def test_many_boats_do_not_hide_each_other() -> None:
    grey = sea(9)
    boats = (np.arange(504) % 24 < 9)[:, None] & (np.arange(504) % 24 < 9)[None, :]  # a seventh of the tile
    assert verdict(tile(np.where(boats, 0.3, grey))).candidates > 300


def test_sea_whose_level_changes_much_over_the_tile_is_not_judged() -> None:
    ramp = 10 ** (np.linspace(-5.0, 5.0, 504) / 20)[:, None]
    judged = verdict(tile(sea(8) * ramp))
    assert (judged.keep, judged.reason) == (True, "uneven")
    assert judged.spread_db == pytest.approx(9.0, abs=0.5)


def test_a_ship_that_fills_a_fifth_of_the_tile_does_not_hide_itself() -> None:
    grey = sea(4)
    grey[50:350, 100:270] = 0.7
    assert verdict(tile(grey)).keep


def test_land_and_coast_are_kept() -> None:
    kept = [verdict(tile(simulated(seed, kind=kind))) for kind in ("inland", "coast", "harbour") for seed in range(5)]
    assert all(judged.keep for judged in kept)


def test_simulated_ships_are_kept_and_most_of_the_empty_sea_is_not() -> None:
    ships = [verdict(tile(simulated(seed, kind="open sea", count=2))).keep for seed in range(20)]
    empty = [verdict(tile(simulated(seed, kind="open sea", count=0))).keep for seed in range(20)]
    assert all(ships)
    assert sum(empty) <= 4  # of 500 seeds 56 are kept (tests/bench/triage_recall.py)


def test_the_edge_of_the_swath_hides_nothing_and_is_no_ship() -> None:
    valid = np.arange(504)[None, :] > np.linspace(150, 350, 504)[:, None]
    assert verdict(tile(sea(5), valid)).reason == "triage"
    grey = sea(5)
    grey[400:404, 420:430] = 0.8
    assert verdict(tile(grey, valid)).reason == "cfar"


def test_a_tile_with_hardly_a_valid_pixel_and_a_very_small_one_are_kept() -> None:
    valid = np.zeros((504, 504), bool)
    valid[:4] = True
    assert verdict(tile(sea(), valid)).reason == "small"
    assert verdict(tile(sea(size=60))).reason == "small"


def test_zeros_of_a_noise_subtracted_product_are_dark_sea() -> None:
    grey = sea(6, looks=1, db=-28.0)
    grey[np.random.default_rng(0).random(grey.shape) < 0.6] = 0.0
    assert np.isfinite([verdict(tile(grey)).level, verdict(tile(grey)).peak]).all()
    grey[100:106, 100:120] = 0.5
    assert verdict(tile(grey)).keep
    assert not verdict(tile(np.zeros((504, 504)))).keep


def test_every_chip_of_ssdd_with_its_ships_is_kept(real_data: Path) -> None:
    from fusar_edge.sar.image import grey_from_file

    chips = sorted((real_data / "ssdd" / "images").glob("*"))[::10]
    missed = [path.name for path in chips if not verdict(tile(grey_from_file(path))).keep]
    assert len(chips) > 50
    assert missed == []


def test_the_anchorage_of_los_angeles_is_kept_and_empty_sea_of_sentinel_1_is_not(real_data: Path) -> None:
    with open_scene(real_data / "scenes" / "s1_port_la_20210105_utm11n_30m_db.tif") as scene:
        assert verdict(scene.read(TileWindow(252, 252, 252, 252))).reason == "cfar"
    with open_scene(real_data / "scenes" / "s1a_vh_10m_epsg3395" / "199.tif") as scene:
        assert verdict(scene.read(TileWindow(400, 0, 300, 300))).reason == "triage"
        assert verdict(scene.read(TileWindow(700, 0, 300, 300))).candidates >= 1  # two ships at anchor
