"""A folder of simulated scenes, read back by the libraries that users have."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyproj
import pytest
import rasterio

from fusar_edge.anchors.per_image import read_anchor_file
from fusar_edge.data.simulator import simulate_scene, write_dataset
from fusar_edge.data.simulator.dataset import scene_bounds, scene_seed
from fusar_edge.data.triplets import read_triplets
from fusar_edge.errors import DataError, OutputExistsError
from fusar_edge.manifest import read_manifest, verify_files
from fusar_edge.sar.image import grey_from_file


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulated") / "set"
    write_dataset(out, 8, 4, size=96)
    return out


def test_every_file_is_hashed_and_every_row_can_be_read(dataset: Path) -> None:
    manifest = read_manifest(dataset)
    verify_files(dataset, manifest)
    assert manifest.stage == "simulate"
    assert "simulated" in manifest.settings["note"]
    triplets = read_triplets(dataset / "triplets.jsonl")
    assert len({t.image for t in triplets}) == manifest.figures["scenes"] == 8
    assert all(t.id is not None and t.id.startswith("simulated-4-") for t in triplets)
    assert len({t.id for t in triplets}) == len(triplets)
    with_anchors = {t.aef for t in triplets if t.aef}
    assert len(with_anchors) == manifest.figures["scenes_with_anchors"] > 0
    assert all(read_anchor_file(path).features.shape[1] == 64 for path in with_anchors)


def test_the_geotiff_holds_the_scene_and_says_simulated(dataset: Path) -> None:
    scene = simulate_scene(scene_seed(4, 2), 96)
    with rasterio.open(dataset / "scenes/sim-4-00002.tif") as file:
        np.testing.assert_array_equal(file.read(1), scene.power)
        assert file.crs.to_epsg() == scene.epsg
        assert tuple(file.transform)[:6] == pytest.approx(scene.transform)
        assert "simulated" in file.tags()["TIFFTAG_IMAGEDESCRIPTION"]
        assert file.tags()["SIMULATED"] == "YES"


def test_a_scene_read_as_an_image_is_its_clipped_amplitude(dataset: Path) -> None:
    power = simulate_scene(scene_seed(4, 1), 96).power
    grey = grey_from_file(dataset / "scenes/sim-4-00001.tif")
    np.testing.assert_allclose(grey, np.clip(np.sqrt(power), 0, 1), atol=1e-6)


def test_the_corners_go_to_longitude_and_latitude_and_back(dataset: Path) -> None:
    for index in range(8):
        scene = simulate_scene(scene_seed(4, index), 96)
        a, _, west, _, e, north = scene.transform
        assert (a, -e) == (scene.spacing_m, scene.spacing_m)
        there = pyproj.Transformer.from_crs(scene.epsg, 4326, always_xy=True)
        lon, lat = there.transform(west, north)
        back = there.transform(lon, lat, direction="INVERSE")
        assert back == pytest.approx((west, north), abs=1e-3)
        lon_min, lat_min, lon_max, lat_max = scene_bounds(scene)
        lons, lats = there.transform([west, west + 96 * a] * 2, [north] * 2 + [north + 96 * e] * 2)
        found = (min(lons), min(lats), max(lons), max(lats))
        assert found == pytest.approx((lon_min, lat_min, lon_max, lat_max), abs=1e-5)
        zone = (scene.epsg % 100) * 6 - 183
        assert abs(lon - zone) <= 3


def test_rows_carry_reference_system_and_bounds(dataset: Path) -> None:
    rows = [json.loads(line) for line in (dataset / "triplets.jsonl").read_text().splitlines()]
    for row in rows:
        assert row["crs"].startswith("EPSG:32")
        assert len(row["bounds"]) == 4
        assert "acquired" not in row  # nothing was


def test_two_runs_write_the_same_bytes(dataset: Path, tmp_path: Path) -> None:
    assert write_dataset(tmp_path / "again", 8, 4, size=96).files == read_manifest(dataset).files


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "set", 3, 0, size=64, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_exists_is_kept_unless_forced(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", 1, 0, size=64)
    with pytest.raises(OutputExistsError, match="--force"):
        write_dataset(tmp_path / "set", 1, 0, size=64)
    write_dataset(tmp_path / "set", 1, 1, size=64, force=True)
    assert [p.name for p in (tmp_path / "set/scenes").iterdir()] == ["sim-1-00000.tif"]


def test_anchors_can_be_left_out(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path / "set", 8, 4, size=64, anchors=False)
    assert not list((tmp_path / "set").rglob("*.npz"))
    assert manifest.figures["scenes_with_anchors"] == 0


@pytest.mark.parametrize("arguments", [{"scenes": 0}, {"seed": -1}, {"size": 10}, {"nodes": 0}])
def test_bad_arguments_are_input_errors(arguments: dict, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="give at least"):
        write_dataset(tmp_path / "set", **({"scenes": 1, "seed": 0} | arguments))
    assert list(tmp_path.iterdir()) == []
