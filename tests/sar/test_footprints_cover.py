"""Tile footprints on the ground: together they cover a scene, and none leaves it."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fusar_edge.sar.scene import open_scene
from fusar_edge.sar.tiles import TileWindow, plan_tiles

SCENES = (
    "s1_port_la_20210105_utm11n_30m_db.tif",
    "s1a_vh_10m_epsg3395/100.tif",
    "s1_spain_7370579_wgs84_10m_vv_vh_db.tif",
    "s1_grd_gcp/*6D00*.tif",
    "opera_rtc_T137_california/*292320-IW1*_VV.tif",
)


def inside(ring: list[list[float]], points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Even-odd rule for points [N, 2] in a closed ring."""
    x, y = points.T
    found = np.zeros(len(points), bool)
    for (x1, y1), (x2, y2) in itertools.pairwise(ring):
        if y1 != y2:
            found ^= ((y1 > y) != (y2 > y)) & (x < (x2 - x1) * (y - y1) / (y2 - y1) + x1)
    return found


@pytest.mark.parametrize("name", SCENES)
def test_tiles_cover_a_real_scene_and_stay_inside_it(real_data: Path, name: str) -> None:
    (path,) = sorted((real_data / "scenes").glob(name))
    rng = np.random.default_rng(0)
    with open_scene(path) as scene:
        windows = plan_tiles(scene.width, scene.height, tile_px=200, overlap_px=32)
        rings = [scene.footprint(window) for window in windows]
        whole = scene.footprint(TileWindow(0, 0, scene.height, scene.width))
        # A pixel off every edge: a footprint is exact to a fraction of a pixel.
        x, y = rng.uniform(1, scene.width - 1, 400), rng.uniform(1, scene.height - 1, 400)
        somewhere = np.column_stack(scene.lonlat(x, y))
        corners = [
            (w.col_off + a * (w.width - 2) + 1, w.row_off + b * (w.height - 2) + 1)
            for w in windows
            for a in (0, 1)
            for b in (0, 1)
        ]
        cx, cy = np.array(corners, np.float64).T
        assert not scene.simulated
        assert np.any([inside(ring, somewhere) for ring in rings], axis=0).all()
        assert inside(whole, np.column_stack(scene.lonlat(cx, cy))).all()
        own = np.column_stack(scene.lonlat(cx, cy)).reshape(len(windows), 4, 2)
        assert all(inside(ring, points).all() for ring, points in zip(rings, own, strict=True))
