"""Real products: Sentinel-1, OPERA RTC-S1, Umbra. Skipped on a machine without them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fusar_edge.errors import SceneError
from fusar_edge.sar.scene import open_scene
from fusar_edge.sar.tiles import TileWindow, plan_tiles

PORT_LA = "s1_port_la_20210105_utm11n_30m_db.tif"
SPAIN = "s1_spain_7370579_wgs84_10m_vv_vh_db.tif"
OPERA = "opera_rtc_T137_california/OPERA_L2_RTC-S1_T137-292318-IW1_20250102T015857Z_20250102T190143Z_S1A_30_v1.0_VV.tif"
QUICK_LOOKS = "s1_grd_gcp/*.tif"


@pytest.mark.parametrize(
    ("name", "kind", "band_name", "crs_name", "acquired"),
    [
        (PORT_LA, "db", "band 1 of 1", "EPSG:32611", None),
        ("s1a_vh_10m_epsg3395/100.tif", "uint8", "band 1 of 1", "EPSG:3395", "2020-11-07T13:52:41Z"),
        (SPAIN, "db", "VV", "EPSG:4326", None),
        (OPERA, "power", "band 1 of 1", "EPSG:32611", "2025-01-02T01:58:57Z"),
        ("s1_camargue_20150309_utm31n_20m_vv_db.tif", "db", "band 1 of 1", "EPSG:32631", None),
        ("umbra_gec_mount_yasur_utm59s_0p6m.tiff", "uint8", "band 1 of 1", "EPSG:32759", None),
    ],
)
def test_real_scenes_open_and_lie_where_gdal_says(
    real_data: Path, name: str, kind: str, band_name: str, crs_name: str, acquired: str | None
) -> None:
    import rasterio
    from rasterio.warp import transform

    path = real_data / "scenes" / name
    with open_scene(path) as scene, rasterio.open(path) as oracle:
        assert (scene.kind, scene.band_name, scene.crs_name, scene.acquired) == (kind, band_name, crs_name, acquired)
        window = plan_tiles(scene.width, scene.height)[-1]
        tile = scene.read(window)
        corners = np.array([(0, 0), (scene.width, 0), (scene.width, scene.height), (0, scene.height)], float)
        a, b, c, d, e, f = tuple(oracle.transform)[:6]
        places = [(a * x + b * y + c, d * x + e * y + f) for x, y in corners]
        expected = transform(oracle.crs, "OGC:CRS84", *map(list, zip(*places, strict=True)))
        np.testing.assert_allclose(scene.lonlat(*corners.T), expected, rtol=0, atol=1e-9)
    assert tile.grey.shape == tile.valid.shape == (window.height, window.width)
    assert tile.valid.mean() > 0.5
    assert 0 <= tile.grey.min() < tile.grey.max() <= 1


def test_in_the_port_of_los_angeles_the_sea_is_dark_and_the_ships_are_white(real_data: Path) -> None:
    with open_scene(real_data / "scenes" / PORT_LA) as scene:
        sea = scene.read(TileWindow(320, 60, 60, 100)).grey
        anchorage = scene.read(TileWindow(220, 310, 180, 80)).grey
        land = scene.read(TileWindow(100, 10, 120, 60)).grey
        whole = scene.read(TileWindow(0, 0, scene.height, scene.width))
    assert np.median(sea) == pytest.approx(0.1, abs=0.05)
    assert 0.2 < np.median(land) < 0.7
    assert np.median(anchorage) < 0.15
    assert (anchorage == 1).sum() > 50
    assert whole.valid.mean() == pytest.approx(1 - 0.0252, abs=0.002)  # nodata 0
    assert (whole.grey[~whole.valid] == 0).all()


def test_the_second_polarisation_of_a_scene_is_darker(real_data: Path) -> None:
    greys = []
    for band in (1, 2):
        with open_scene(real_data / "scenes" / SPAIN, band=band) as scene:
            greys.append(scene.read(plan_tiles(scene.width, scene.height)[0]).grey)
            assert scene.band_name == ("VV", "VH")[band - 1]
    assert np.median(greys[1]) < 0.7 * np.median(greys[0])


@pytest.mark.parametrize("name", [PORT_LA, SPAIN, OPERA])
def test_tile_footprints_lie_inside_the_scene_and_cover_it(real_data: Path, name: str) -> None:
    with open_scene(real_data / "scenes" / name) as scene:
        whole = np.array(scene.footprint(TileWindow(0, 0, scene.height, scene.width)))
        rings = [np.array(scene.footprint(w)) for w in plan_tiles(scene.width, scene.height, 80, 16)]
        lon, lat = scene.lonlat(
            *np.random.default_rng(0).uniform(0.01, 0.99, (2, 300)) * [[scene.width], [scene.height]]
        )
        pixel = np.abs(np.diff(scene.lonlat([0.0, 1.0], [0.0, 1.0]))).max()
    assert all(_inside(lon, lat, whole))
    assert np.any([_inside(lon, lat, ring) for ring in rings], axis=0).all()
    middle = whole[:-1].mean(axis=0)
    for ring in rings:  # a hair towards the middle, since edges may differ by 0.1 px
        shrunk = ring + 0.4 * pixel * np.sign(middle - ring)
        assert _inside(shrunk[:, 0], shrunk[:, 1], whole).all()


def _inside(lon: np.ndarray, lat: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """Even-odd rule, point by point: the definition of a polygon's inside as GeoJSON readers use it."""
    (x0, y0), (x1, y1) = ring[:-1].T, ring[1:].T
    crosses = (y0 > lat[:, None]) != (y1 > lat[:, None])
    with np.errstate(divide="ignore", invalid="ignore"):
        at = x0 + (lat[:, None] - y0) * (x1 - x0) / (y1 - y0)
    return np.sum(crosses & (lon[:, None] < at), axis=1) % 2 == 1


@pytest.mark.parametrize("number", range(5))
def test_gcp_quick_looks_are_placed_on_their_gcps(real_data: Path, number: int) -> None:
    import rasterio

    path = sorted((real_data / "scenes").glob(QUICK_LOOKS))[number]
    with rasterio.open(path) as file:
        gcps = np.array([(g.col, g.row, g.x, g.y) for g in file.gcps[0]])
    with open_scene(path) as scene:
        assert scene.geolocation is not None
        assert scene.geolocation.method == "spline of 210 GCPs"
        assert scene.acquired is not None
        np.testing.assert_allclose(scene.lonlat(gcps[:, 0], gcps[:, 1]), gcps[:, 2:].T, rtol=0, atol=1e-7)
        whole = plan_tiles(scene.width, scene.height, 1000)[0]
        lon, lat = np.array(scene.footprint(whole)).T
    assert lon.min() == pytest.approx(gcps[:, 2].min(), abs=0.01)
    assert lat.max() == pytest.approx(gcps[:, 3].max(), abs=0.01)


@pytest.mark.parametrize(
    "name", ["nisar_format_rslc_sanandreas.h5", "sicd_50x50.nitf", "s1_spain_7370579_water_label.tif"]
)
def test_complex_products_and_labels_are_refused_by_name(real_data: Path, name: str) -> None:
    with pytest.raises(SceneError, match=name):
        open_scene(real_data / "scenes" / name)
