"""Where pixels lie: against pyproj, rasterio.warp and closed forms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusar_edge.errors import SceneError
from fusar_edge.sar.scene import Scene, open_scene
from fusar_edge.sar.tiles import TileWindow

WriteScene = Callable[..., Path]
GREY = np.full((60, 80), 100, np.uint8)
METRES_PER_DEGREE = 111_320


def _turned(west: float, north: float, x_size: float, y_size: float, degrees: float = 0.0) -> object:
    """Affine transform of a raster turned about its first corner (rasterio's from_origin warns with affine 3.1)."""
    from rasterio.transform import Affine

    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return Affine(x_size * cos, -x_size * sin, west, -y_size * sin, -y_size * cos, north)


def _oracle(path: Path, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """GDAL's own way: the dataset's transform and rasterio.warp. [2, n] lon, lat."""
    import rasterio
    from rasterio.warp import transform

    with rasterio.open(path) as file:
        a, b, c, d, e, f = tuple(file.transform)[:6]
        return np.array(transform(file.crs, "OGC:CRS84", (a * x + b * y + c).tolist(), (d * x + e * y + f).tolist()))


def _outline(window: TileWindow, n: int = 101) -> tuple[np.ndarray, np.ndarray]:
    """Dense pixel coordinates along a window's four edges."""
    t = np.linspace(0, 1, n)
    x0, y0 = window.col_off, window.row_off
    x = np.concatenate([x0 + 0 * t, x0 + window.width * t, x0 + window.width + 0 * t, x0 + window.width * (1 - t)])
    y = np.concatenate([y0 + window.height * t, y0 + window.height + 0 * t, y0 + window.height * (1 - t), y0 + 0 * t])
    return x, y


def _distance_px(scene: Scene, window: TileWindow) -> float:
    """Largest distance in pixels of the window's true outline from its footprint polygon, measured in local metres."""
    x, y = _outline(window)
    lon, lat = scene.lonlat(x, y)
    ring = np.array(scene.footprint(window))
    scale = np.array([np.cos(np.deg2rad(lat.mean())), 1.0]) * METRES_PER_DEGREE
    ring_lon = ring[:, 0] + 360 * np.round((lon[0] - ring[0, 0]) / 360)
    points, a = np.stack([lon, lat], 1) * scale, np.stack([ring_lon, ring[:, 1]], 1) * scale
    start, step = a[:-1], np.diff(a, axis=0)
    t = np.clip(((points[:, None] - start) * step).sum(2) / (step**2).sum(1), 0, 1)
    far = np.linalg.norm(points[:, None] - (start + t[..., None] * step), axis=2).min(1)
    px = np.hypot(*(np.diff(scene.lonlat([0.0, 1.0], [0.0, 0.0]), axis=1)[:, 0] * scale))
    return float(far.max() / px)


CASES = {
    "utm": ("EPSG:32611", (380_000, 3_735_000, 30, 30)),
    "mercator": ("EPSG:3395", (-13_173_501.9, 3_976_459.7, 10, 10)),
    "degrees": ("EPSG:4326", (-0.78, 38.1, 9e-5, 9e-5)),
    "degrees to 360": ("EPSG:4326", (239.2, 38.1, 9e-5, 9e-5)),
    "polar": ("EPSG:3413", (-900_000, -1_200_000, 40, 40)),
    "albers": ("EPSG:5070", (-1_500_000, 2_000_000, 100, 100)),
}


@pytest.mark.parametrize("case", CASES)
def test_lonlat_is_that_of_gdal(write_scene: WriteScene, case: str) -> None:
    crs, origin = CASES[case]
    path = write_scene(GREY, crs=crs, transform=_turned(*origin))
    x, y = np.random.default_rng(1).uniform(0, 60, (2, 50))
    with open_scene(path) as scene:
        lon, lat = scene.lonlat(x, y)
    expected = _oracle(path, x, y)
    expected[0] = (expected[0] + 180) % 360 - 180
    assert lon.dtype == lat.dtype == np.float64
    np.testing.assert_allclose([lon, lat], expected, rtol=0, atol=1e-9)


def test_pixel_zero_is_the_outer_corner_of_the_first_pixel(write_scene: WriteScene) -> None:
    from rasterio.transform import Affine

    path = write_scene(GREY, crs="EPSG:4326", transform=Affine(0.001, 0, 10.0, 0, -0.002, 50.0))
    with open_scene(path) as scene:
        lon, lat = scene.lonlat([[0.0, 80.0]], [[0.0], [60.0]])
    np.testing.assert_allclose(lon, [[10.0, 10.08]] * 2, atol=1e-12)
    np.testing.assert_allclose(lat, [[50.0, 50.0], [49.88, 49.88]], atol=1e-12)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(sorted(CASES)), st.integers(0, 3000), st.integers(0, 3000), st.integers(1, 4000), st.floats(0, 360)
)
def test_footprints_follow_the_outline_within_a_tenth_of_a_pixel(
    write_scene: WriteScene, case: str, row: int, col: int, side: int, degrees: float
) -> None:
    crs, origin = CASES[case]
    turned = _turned(*origin, degrees)
    path = write_scene(np.full((1, 1), 9, np.uint8), crs=crs, transform=turned)
    window = TileWindow(row, col, side, side // 2 + 1)
    with open_scene(path) as scene:
        ring = scene.footprint(window)
        assert ring[0] == ring[-1]
        assert len(ring) >= 5
        assert _distance_px(scene, window) <= 0.11
        lon, lat = np.array(ring).T
        assert np.sum(lon[:-1] * lat[1:] - lon[1:] * lat[:-1]) > 0  # counter-clockwise


def test_a_bottom_up_raster_has_the_ring_of_its_north_up_twin(write_scene: WriteScene) -> None:
    from rasterio.transform import Affine

    up = write_scene(GREY, "up.tif", transform=Affine(10, 0, 380_000, 0, 10, 3_734_400))
    down = write_scene(GREY, "down.tif", transform=Affine(10, 0, 380_000, 0, -10, 3_735_000))
    with open_scene(up) as a, open_scene(down) as b:
        ring_a, ring_b = a.footprint(TileWindow(0, 0, 60, 80)), b.footprint(TileWindow(0, 0, 60, 80))
    for ring in (ring_a, ring_b):
        lon, lat = np.array(ring).T
        assert np.sum(lon[:-1] * lat[1:] - lon[1:] * lat[:-1]) > 0  # counter-clockwise
    assert {tuple(np.round(p, 9)) for p in ring_a} == {tuple(np.round(p, 9)) for p in ring_b}


def test_longitudes_do_not_jump_at_the_antimeridian(write_scene: WriteScene) -> None:
    from rasterio.transform import Affine

    # UTM zone 1 reaches over 180 degrees in the west: at 60 N its edge lies at x = 333,000
    path = write_scene(GREY, crs="EPSG:32601", transform=Affine(40, 0, 332_000, 0, -40, 6_660_000))
    window = TileWindow(0, 0, 60, 80)
    with open_scene(path) as scene:
        lon, _ = scene.lonlat(np.arange(81.0), np.full(81, 30.0))
        ring = np.array(scene.footprint(window))
        assert _distance_px(scene, window) <= 0.11
    assert (np.diff(lon) > 0).all()
    assert lon.max() - lon.min() < 0.1
    assert lon.min() < -180 < lon.max() or lon.min() < 180 < lon.max()
    assert np.ptp(ring[:, 0]) < 0.1


def test_a_window_that_holds_the_pole_is_closed_along_it(write_scene: WriteScene) -> None:
    from rasterio.transform import Affine

    path = write_scene(GREY, crs="EPSG:3413", transform=Affine(1000, 0, -40_000, 0, -1000, 30_000))
    with open_scene(path) as scene:
        ring = np.array(scene.footprint(TileWindow(0, 0, 60, 80)))
    assert ring[:, 1].max() == 90
    assert np.ptp(ring[:, 0]) == pytest.approx(360)


def _gcps(to_place: Callable[[float, float], tuple[float, float]], steps: int = 6) -> list[object]:
    from rasterio.control import GroundControlPoint

    pixels = [(r, c) for r in np.linspace(0, 60, steps) for c in np.linspace(0, 80, steps)]
    return [GroundControlPoint(row=r, col=c, x=to_place(c, r)[0], y=to_place(c, r)[1]) for r, c in pixels]


def test_gcps_alone_place_a_scene(write_scene: WriteScene) -> None:
    def bent(x: float, y: float) -> tuple[float, float]:
        return 20 - 0.004 * x - 0.001 * y + 2e-6 * x * y, 40 + 0.001 * x - 0.004 * y + 1e-6 * x * x

    path = write_scene(GREY, gcps=_gcps(bent), crs="EPSG:4326")
    x, y = np.random.default_rng(0).uniform(5, 55, (2, 40))
    with open_scene(path) as scene:
        lon, lat = scene.lonlat(x, y)
        assert scene.crs_name == "EPSG:4326"
        assert _distance_px(scene, TileWindow(0, 0, 60, 80)) <= 0.11
    expected = np.array([bent(a, b) for a, b in zip(x, y, strict=True)]).T
    assert np.abs(np.array([lon, lat]) - expected).max() < 0.02 * 0.004  # 0.02 px


def test_gcps_in_a_projection_and_across_the_antimeridian(write_scene: WriteScene) -> None:
    metric = write_scene(
        GREY, "m.tif", gcps=_gcps(lambda x, y: (380_000 + 10 * x, 3_735_000 - 10 * y)), crs="EPSG:32611"
    )
    affine = write_scene(GREY, "a.tif")
    with open_scene(metric) as a, open_scene(affine) as b:
        np.testing.assert_allclose(a.lonlat(33.3, 44.4), b.lonlat(33.3, 44.4), rtol=0, atol=1e-9)
    around = write_scene(
        GREY, "w.tif", gcps=_gcps(lambda x, y: ((179.9 + 0.004 * x + 180) % 360 - 180, 5 - 0.004 * y)), crs="EPSG:4326"
    )
    with open_scene(around) as scene:
        lon, _ = scene.lonlat(np.array([0.0, 40.0, 80.0]), np.full(3, 30.0))
    np.testing.assert_allclose(np.diff(lon), 0.16, atol=1e-9)


def test_four_corner_gcps_are_enough(write_scene: WriteScene) -> None:
    path = write_scene(GREY, gcps=_gcps(lambda x, y: (10 + 0.001 * x, 50 - 0.001 * y), steps=2), crs="EPSG:4326")
    with open_scene(path) as scene:
        np.testing.assert_allclose(scene.lonlat(40.0, 30.0), (10.04, 49.97), atol=1e-9)


@pytest.mark.parametrize(
    ("points", "why"),
    [
        ([(0, 0), (60, 80)], "span a plane"),
        ([(0, 0), (30, 40), (60, 80)], "span a plane"),
        ([(5, 5)] * 5, "span a plane"),
    ],
)
def test_gcps_that_span_no_plane_are_refused(write_scene: WriteScene, points: list[tuple[int, int]], why: str) -> None:
    from rasterio.control import GroundControlPoint

    gcps = [GroundControlPoint(row=r, col=c, x=10 + c / 1000, y=50 - r / 1000) for r, c in points]
    with pytest.raises(SceneError, match=why):
        open_scene(write_scene(GREY, gcps=gcps, crs="EPSG:4326"))


def test_gcps_that_give_one_pixel_two_places_are_refused(write_scene: WriteScene) -> None:
    from rasterio.control import GroundControlPoint

    gcps = [*_gcps(lambda x, y: (10 + 0.001 * x, 50 - 0.001 * y)), GroundControlPoint(row=0, col=0, x=11, y=51)]
    with pytest.raises(SceneError, match="GCPs"):
        open_scene(write_scene(GREY, gcps=gcps, crs="EPSG:4326"))


def test_gcps_without_a_crs_are_refused(write_scene: WriteScene) -> None:
    from rasterio.crs import CRS

    path = write_scene(GREY, gcps=_gcps(lambda x, y: (10 + 0.001 * x, 50 - 0.001 * y)), crs=CRS())
    with pytest.raises(SceneError, match="no CRS"):
        open_scene(path)
