"""On real extracts of the data set (shared/data/aef)."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyproj
import pytest
from alphaearth_files import write_raster

from fusar_edge.anchors.building.build import build_table
from fusar_edge.anchors.codes import BAND_NAMES, codes_from_vectors
from fusar_edge.anchors.table import AnchorTable
from fusar_edge.anchors.verify import verify_table


@pytest.fixture
def wisconsin(real_data: Path) -> Path:
    return real_data / "aef" / "aef_wisconsin_2024_16N_10m_int8.tif"


@pytest.mark.parametrize("spacing_m", [10, 80])
def test_wisconsin_flipped_bottom_up_gives_the_same_table(wisconsin: Path, tmp_path: Path, spacing_m: int) -> None:
    import rasterio

    with rasterio.open(wisconsin) as dataset:
        codes, bounds = np.moveaxis(dataset.read(), 0, -1), dataset.bounds
    flipped = write_raster(tmp_path / "flipped.tif", codes, west=bounds.left, north=bounds.top, bottom_up=True)
    first = build_table([wisconsin], tmp_path / "a", years=[2024], spacing_m=spacing_m)
    second = build_table([flipped], tmp_path / "b", years=[2024], spacing_m=spacing_m)
    assert first.files == second.files
    [zone] = AnchorTable.open(tmp_path / "a").zones
    stored = np.asarray(zone.array[0])
    if spacing_m == 10:
        np.testing.assert_array_equal(stored, codes)
    else:
        assert stored.shape == (13, 13, 64)


def test_every_cell_of_the_three_tables_of_points_is_the_mean_of_its_points(real_data: Path, tmp_path: Path) -> None:
    sources = sorted((real_data / "aef").glob("*.csv"))
    manifest = build_table(sources, tmp_path / "t", spacing_m=320)
    assert manifest.figures["years"] == [2024]
    to_utm = {epsg: pyproj.Transformer.from_crs(4326, epsg, always_xy=True) for epsg in (32610, 32615)}
    cells, lonlat = defaultdict(list), {}
    for source in sources:
        with open(source, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                lon, lat = float(row["longitude"]), float(row["latitude"])
                epsg = 32610 if lon < -120 else 32615
                x, y = to_utm[epsg].transform(lon, lat)
                cells[epsg, x // 320, y // 320].append([float(row[name]) for name in BAND_NAMES])
                lonlat[epsg, x // 320, y // 320] = lon, lat
    anchors = AnchorTable.open(tmp_path / "t").lookup(*np.array(list(lonlat.values())).T, 2024)
    assert anchors.mask.all()
    assert verify_table(tmp_path / "t")["valid_cells"] == len(cells)
    means = np.array([np.mean(vectors, axis=0) for vectors in cells.values()])
    single = np.array([len(vectors) == 1 for vectors in cells.values()])
    np.testing.assert_array_equal(anchors.codes[single], codes_from_vectors(means[single]))
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_array_equal(anchors.codes[~single], codes_from_vectors(means[~single]))
    assert min(single.sum(), (~single).sum()) > 50
