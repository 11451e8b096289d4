from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import write_fake_bundle
from PIL import Image
from test_runtime_interpreter import ALL, ANSWERS, scripted, sea, write_scene

from fusar_edge.errors import BundleError, InputError, OutputExistsError, SceneError
from fusar_edge.runtime.bundle import Bundle
from fusar_edge.runtime.geojson import collection_bytes, collection_from_interpretation
from fusar_edge.runtime.interpreter import Interpretation, interpret
from fusar_edge.runtime.job import interpret_to_files
from fusar_edge.runtime.overlay import overlay_from_result
from fusar_edge.sar.scene import open_scene


def rings(geometry: dict[str, Any]) -> list[list[list[float]]]:
    parts = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
    return [ring for part in parts for ring in part]


def check_geometry(geometry: dict[str, Any]) -> None:
    """RFC 7946: closed, counter-clockwise, longitudes and latitudes in range."""
    assert rings(geometry)
    for ring in rings(geometry):
        lon, lat = np.array(ring).T
        assert len(ring) >= 4
        assert ring[0] == ring[-1]
        assert np.sum(lon[:-1] * lat[1:] - lon[1:] * lat[:-1]) > 0
        assert np.abs(lon).max() <= 180
        assert np.abs(lat).max() <= 90


@pytest.fixture
def interpreted(bundle: Bundle, tmp_path: Path) -> Interpretation:
    session, _ = scripted(bundle, ANSWERS)
    path = write_scene(tmp_path / "s.tif", sea(64, 110))
    return interpret(bundle, [path], ALL, session=session, overlap_px=10)


def test_the_collection_is_json_with_one_answer_for_each_tile_and_question(interpreted: Interpretation) -> None:
    collection = json.loads(collection_bytes(collection_from_interpretation(interpreted)))
    assert collection["type"] == "FeatureCollection"
    answers = [f["properties"] for f in collection["features"] if f["properties"]["kind"] == "answer"]
    assert [(a["tile"], a["task"]) for a in answers] == [
        (tile, task) for tile in (0, 1) for task in ("caption", "count", "grid", "detect", "classify")
    ]
    assert {a["time"] for a in answers} == {"2021-01-05T14:00:00Z"}
    count = answers[1]
    assert (count["text"], count["value"], count["parse_status"], count["stop_reason"]) == ("1", 1, "parsed", "eos")
    assert count["sha256"] == {
        "bundle": interpreted.bundle.sha256, "table": None, "scene": interpreted.scenes[0].sha256,
    }  # fmt: skip
    assert collection["counts"] == {
        "scenes": 1, "tiles": 2, "tiles_skipped": 0, "answers": 10, "answers_not_parsed": 0,
        "answers_cut_short": 0, "detections": len(interpreted.scenes[0].detections),
    }  # fmt: skip
    for feature in collection["features"]:
        assert feature["type"] == "Feature"
        check_geometry(feature["geometry"])


def test_a_box_on_the_ground_is_where_its_pixels_are(interpreted: Interpretation) -> None:
    import pyproj

    collection = collection_from_interpretation(interpreted)
    to_utm = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:32611", always_xy=True).transform
    detect = [f["properties"] for f in collection["features"] if f["properties"].get("task") == "detect"][1]
    box = detect["value"][0]
    assert box["box_px"] == [46, 8, 62, 32]
    x, y = to_utm(*np.array(rings(box["geometry"])[0]).T)
    assert (min(x), max(x)) == pytest.approx((380_000 + 460, 380_000 + 620), abs=0.1)
    assert (min(y), max(y)) == pytest.approx((3_735_000 - 320, 3_735_000 - 80), abs=0.1)
    tile = [f for f in collection["features"] if f["properties"].get("task") == "detect"][1]
    x, y = to_utm(*np.array(rings(tile["geometry"])[0]).T)
    assert (min(x), max(x)) == pytest.approx((380_000 + 460, 380_000 + 1100), abs=0.5)


def test_text_that_does_not_parse_is_kept_and_counted_and_gives_no_box(bundle: Bundle, tmp_path: Path) -> None:
    session, _ = scripted(bundle, {})
    path = write_scene(tmp_path / "s.tif", sea(64, 64))
    result = interpret(bundle, [path], ["detect", "count"], session=session, overlap_px=0)
    collection = collection_from_interpretation(result)
    assert collection["counts"]["answers_not_parsed"] == 2
    assert [f["properties"]["text"] for f in collection["features"]] == ["?", "?"]
    assert [f["properties"]["value"] for f in collection["features"]] == [None, None]
    assert [f["properties"]["parse_status"] for f in collection["features"]] == ["failed", "failed"]


def test_a_footprint_across_the_antimeridian_is_cut_there(bundle: Bundle, tmp_path: Path) -> None:
    from rasterio.transform import Affine

    place = {"crs": "EPSG:4326", "transform": Affine(0.01, 0, 179.7, 0, -0.01, 10.0)}
    path = write_scene(tmp_path / "s.tif", sea(64, 64), **place)
    session, _ = scripted(bundle, ANSWERS)
    result = interpret(bundle, [path], ["count"], session=session, overlap_px=0)
    geometry = collection_from_interpretation(result)["features"][0]["geometry"]
    assert geometry["type"] == "MultiPolygon"
    check_geometry(geometry)
    spans = sorted((min(p[0] for p in ring), max(p[0] for p in ring)) for ring in rings(geometry))
    assert spans[0] == pytest.approx((-180, -179.66))
    assert spans[1] == pytest.approx((179.7, 180))


def test_the_overlay_shows_boxes_cells_and_a_legend(interpreted: Interpretation) -> None:
    scene = interpreted.scenes[0]
    with open_scene(scene.path) as opened:
        picture = overlay_from_result(opened, scene, interpreted)
    pixels = np.asarray(picture).astype(int)
    assert picture.width == 1400
    assert picture.height > 1400 * 64 / 110 + 60  # a legend below
    scale = 1400 / 110
    x1, y1, _, y2 = (round(v * scale) for v in scene.detections[0].box)
    edge = pixels[(y1 + y2) // 2, x1 + 1]
    assert edge[0] > 200
    assert edge[1] < 100  # red
    assert (pixels[-60:] > 200).any()  # text in the legend


def test_a_scene_larger_than_the_picture_is_averaged_down(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fusar_edge.runtime import overlay

    monkeypatch.setattr(overlay, "LARGEST_PX", 40)
    monkeypatch.setattr(overlay, "SMALLEST_PX", 20)
    values = np.full((70, 90), 100, np.uint8)
    values[:, :6] = 0
    with open_scene(write_scene(tmp_path / "s.tif", values)) as scene:
        preview = overlay._preview(scene)
    assert preview.shape == (24, 30)
    assert np.isnan(preview[:, :2]).all()
    np.testing.assert_allclose(preview[:, 2:], 100 / 255, rtol=1e-6)


def test_files_appear_whole_and_existing_ones_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "s.tif", sea(64, 64))
    out, overlay = tmp_path / "r.geojson", tmp_path / "r.png"
    arguments: dict[str, Any] = {"out": out, "overlay": overlay, "threads": 1, "overlap_px": 0}
    _, summary = interpret_to_files(bundle.folder, [scene], ["count"], **arguments)
    assert summary["answers"] == 1
    assert json.loads(out.read_text())["counts"]["tiles"] == 1
    with Image.open(overlay) as picture:
        assert picture.format == "PNG"
    with pytest.raises(OutputExistsError, match=r"r\.geojson exists"):  # before the absent bundle is looked for
        interpret_to_files(tmp_path / "absent", [scene], ["count"], **arguments)
    interpret_to_files(bundle.folder, [scene], ["count"], force=True, **arguments)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.geojson", "r.png", "s.tif"]


def test_bad_input_leaves_no_file(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = write_scene(tmp_path / "s.tif", sea(64, 64))
    (tmp_path / "cut.tif").write_bytes(scene.read_bytes()[:300])
    out = tmp_path / "out" / "r.geojson"
    common: dict[str, Any] = {"out": out, "threads": 1, "overlap_px": 0}
    with pytest.raises(SceneError, match=r"cut\.tif"):
        interpret_to_files(bundle.folder, [scene, tmp_path / "cut.tif"], ["count"], **common)
    with pytest.raises(InputError, match=r"ends in \.png"):
        interpret_to_files(bundle.folder, [scene], ["count"], overlay=tmp_path / "o.jpg", **common)
    with pytest.raises(InputError, match="are both"):
        interpret_to_files(bundle.folder, [scene], out=tmp_path / "o.png", overlay=tmp_path / "o.png")
    with pytest.raises(BundleError, match="is not a bundle"):
        interpret_to_files(tmp_path, [scene], ["count"], **common)
    monkeypatch.setattr("fusar_edge.runtime.job._write_overlay", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        interpret_to_files(bundle.folder, [scene], ["count"], overlay=tmp_path / "out" / "o.png", **common)
    assert not list(out.parent.iterdir())  # where only the overlay failed, the GeoJSON is not left either


def test_several_scenes_get_one_overlay_each(bundle: Bundle, tmp_path: Path) -> None:
    scenes = [write_scene(tmp_path / f"{i}.tif", sea(64, 64)) for i in range(2)]
    options: dict[str, Any] = {"overlay": tmp_path / "o.png", "threads": 1, "overlap_px": 0}
    _, summary = interpret_to_files(bundle.folder, scenes, ["grid"], out=tmp_path / "r.geojson", **options)
    assert [Path(p).name for p in summary["overlays"]] == ["o-1.png", "o-2.png"]
    assert all(Path(p).is_file() for p in summary["overlays"])


SCENES = {
    "s1_port_la_20210105_utm11n_30m_db.tif": 4,
    "s1a_vh_10m_epsg3395/100.tif": 9,
    "s1_spain_7370579_wgs84_10m_vv_vh_db.tif": 4,
    "s1_grd_gcp/S1A_IW_GRDH_1SDV_20150222T170725_20150222T170750_004739_005DD8_CEAB_quicklook_gcps.tif": 2,
    "opera_rtc_T137_california/OPERA_L2_RTC-S1_T137-292318-IW1_20250102T015857Z_20250102T190143Z_S1A_30_v1.0_VV.tif": 1,
}


@pytest.mark.parametrize("name", SCENES)
def test_real_scenes_of_every_kind_give_footprints_inside_the_scene(real_data: Path, tmp_path: Path, name: str) -> None:
    bundle = write_fake_bundle(tmp_path / "b", tile_px=504)
    session, _ = scripted(bundle, ANSWERS)
    scene = real_data / "scenes" / name
    result = interpret(bundle, [scene], ["count", "detect"], session=session)
    collection = json.loads(collection_bytes(collection_from_interpretation(result)))
    assert collection["counts"]["tiles"] == SCENES[name]
    with open_scene(scene) as opened:
        height, width = opened.height, opened.width
        lon, lat = opened.lonlat([0, width, width, 0], [0, 0, height, height])
    margin = 1e-3 + 0.01 * max(np.ptp(lon), np.ptp(lat))
    for feature in collection["features"]:
        check_geometry(feature["geometry"])
        points = np.array(rings(feature["geometry"])[0])
        assert points[:, 0].min() > lon.min() - margin
        assert points[:, 0].max() < lon.max() + margin
        assert points[:, 1].min() > lat.min() - margin
        assert points[:, 1].max() < lat.max() + margin
