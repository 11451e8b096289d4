from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fakes import ScriptedBackend, Weights, write_fake_bundle

from fusar_edge.errors import InputError, SceneError
from fusar_edge.manifest import Manifest
from fusar_edge.runtime.bundle import Bundle
from fusar_edge.runtime.geojson import collection_from_interpretation
from fusar_edge.runtime.interpreter import Interpretation, interpret
from fusar_edge.runtime.session import Session


def write_scene(path: Path, values: np.ndarray, **profile: Any) -> Path:
    """8-bit GeoTIFF, 10 m pixels, UTM 11N; 0 is nodata."""
    import rasterio
    from rasterio.transform import Affine

    shape = {"count": 1, "height": values.shape[0], "width": values.shape[1], "dtype": values.dtype}
    place = {"crs": "EPSG:32611", "transform": Affine(10, 0, 380_000, 0, -10, 3_735_000), "nodata": 0}
    with rasterio.open(path, "w", driver="GTiff", **{**shape, **place, **profile}) as file:
        file.write(values[None])
        file.update_tags(acquired="2021-01-05T14:00:00Z")
    return path


def sea(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(3).integers(5, 60, (height, width)).astype(np.uint8)


def scripted(bundle: Bundle, answers: dict[str, str]) -> tuple[Session, ScriptedBackend]:
    """A session that answers by the first key that the question holds."""
    backend = ScriptedBackend(bundle, lambda q, _: next((a for key, a in answers.items() if key in q), "?"))
    return Session(bundle, backend=backend, grammar=False), backend


BOXES = '[{"bbox_2d": [0, 63, 126, 252], "label": "ship"}]'
ANSWERS = {"How many": "1", "Which cells": "4", "detect": BOXES, "class of": "cargo", "Describe": "Sea with a ship."}
ALL = ("caption", "count", "grid", "classify", "detect")


def test_each_tile_is_looked_at_once_whatever_the_number_of_tasks(bundle: Bundle, tmp_path: Path) -> None:
    session, backend = scripted(bundle, ANSWERS)
    path = write_scene(tmp_path / "s.tif", sea(100, 64))
    result = interpret(bundle, [path], ALL, session=session, overlap_px=10)
    tiles = len(result.scenes[0].windows)
    assert tiles == 2
    assert (len(backend.visions), backend.prefixes) == (tiles, tiles)
    assert [r.task for r in result.scenes[0].records[:5]] == ["caption", "count", "grid", "detect", "classify"]
    assert all(r.answer.parsed.ok for r in result.scenes[0].records)
    assert result.scenes[0].records[0].answer.generation.confidence == pytest.approx(1.0)


def test_a_box_of_an_answer_lands_on_its_pixels_of_the_scene(bundle: Bundle, tmp_path: Path) -> None:
    session, _ = scripted(bundle, ANSWERS)
    path = write_scene(tmp_path / "s.tif", sea(100, 130))
    scene = interpret(bundle, [path], ["detect"], session=session, overlap_px=0).scenes[0]
    last = scene.records[-1]
    assert (last.window.row_off, last.window.col_off) == (36, 66)
    assert last.detections[0].box == pytest.approx((66, 36 + 8, 66 + 16, 36 + 32))
    assert last.detections[0].cut  # it begins at the tile's left edge, inside the scene
    assert not scene.records[0].detections[0].cut  # the left edge of this tile is the scene's


def test_a_tile_without_a_valid_pixel_is_skipped_and_counted(bundle: Bundle, tmp_path: Path) -> None:
    values = sea(64, 192)
    values[:, 64:128] = 0
    session, backend = scripted(bundle, ANSWERS)
    scene = interpret(
        bundle, [write_scene(tmp_path / "s.tif", values)], ["count"], session=session, overlap_px=0
    ).scenes[0]
    assert (scene.skipped, [r.tile for r in scene.records], len(backend.visions)) == (1, [0, 2], 2)


def test_classify_asks_about_the_boxes_that_were_given(bundle: Bundle, tmp_path: Path) -> None:
    session, _ = scripted(bundle, ANSWERS)
    path = write_scene(tmp_path / "s.tif", sea(64, 128))
    boxes = [(60.0, 10.0, 80.0, 20.0), (1.0, 2.0, 33.0, 34.0)]  # the first reaches into both tiles
    records = interpret(bundle, [path], ["classify"], boxes=boxes, session=session, overlap_px=0).scenes[0].records
    assert [(r.tile, r.box, r.answer.parsed.value) for r in records] == [(0, boxes[1], "cargo"), (1, boxes[0], "cargo")]
    assert "[8, 16, 260, 268]" in records[0].answer.question
    with pytest.raises(InputError, match="exactly one where boxes are given"):
        interpret(bundle, [path, path], ["classify"], boxes=boxes, session=session)


def test_classify_alone_brings_detect_with_it(bundle: Bundle, tmp_path: Path) -> None:
    session, _ = scripted(bundle, ANSWERS)
    path = write_scene(tmp_path / "s.tif", sea(64, 64))
    result = interpret(bundle, [path], ["classify"], session=session, overlap_px=0)
    assert result.tasks == ("detect", "classify")
    assert [r.task for r in result.scenes[0].records] == ["detect", "classify"]
    assert "[0, 63, 126, 252]" in result.scenes[0].records[1].answer.question


def test_boxes_of_one_tile_are_not_classified_in_the_next_where_detect_failed(bundle: Bundle, tmp_path: Path) -> None:
    answers = iter([BOXES, "cargo", "no idea"])
    backend = ScriptedBackend(bundle, lambda q, _: next(answers))
    path = write_scene(tmp_path / "s.tif", sea(64, 128))
    session = Session(bundle, backend=backend, grammar=False)
    scene = interpret(bundle, [path], ["classify"], session=session, overlap_px=0).scenes[0]
    assert [(r.tile, r.task, r.answer.parsed.ok) for r in scene.records] == [
        (0, "detect", True), (0, "classify", True), (1, "detect", False),
    ]  # fmt: skip
    assert len(scene.detections) == 1  # the text that did not parse is no box


class FakeTable:
    """East of a longitude there is land: vectors of one value; west of it sea."""

    def __init__(self, path: Path, lon: float) -> None:
        self.path, self.lon, self.years, self.asked = path, lon, [2019, 2020, 2022], []
        self.manifest = Manifest(stage="anchors")
        (path / "manifest.json").write_text("{}")

    def lookup_xy(self, x: np.ndarray, y: np.ndarray, crs: Any, year: int | None, *, nearest: bool) -> Any:
        import pyproj

        lon, lat = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(x, y)
        self.asked.append((lon, lat, year, nearest))
        mask = np.asarray(lon) > self.lon
        vectors = np.where(mask[:, None], np.float32(0.125), np.float32(0)) * np.ones((1, 64), np.float32)
        counts = {"found": int(mask.sum()), "masked": int((~mask).sum()), "outside": 0, "no_year": 0}
        years = {year: counts["found"]} if mask.any() else {}
        return SimpleNamespace(mask=mask, vectors=lambda: vectors, counts=counts, years=years)


def test_anchors_are_looked_up_at_the_tiles_own_nodes(bundle: Bundle, tmp_path: Path) -> None:
    import pyproj

    path = write_scene(tmp_path / "s.tif", sea(64, 128))
    to_wgs84 = pyproj.Transformer.from_crs("EPSG:32611", "EPSG:4326", always_xy=True).transform
    east = to_wgs84(380_000 + 640, 3_735_000 - 320)[0]
    table = FakeTable(tmp_path, east)
    session, backend = scripted(bundle, ANSWERS)
    result = interpret(bundle, [path], ["count"], anchors=table, session=session, overlap_px=0)  # type: ignore[arg-type]  # a fake
    lon, lat, year, nearest = table.asked[1]
    assert (year, nearest) == (2020, True)  # 2021 lies between 2020 and 2022: the earlier one
    x, y = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:32611", always_xy=True).transform(lon, lat)
    np.testing.assert_allclose(np.reshape(x, (3, 3))[0] - 380_000, [645, 960, 1275], atol=0.01)
    np.testing.assert_allclose(3_735_000 - np.reshape(y, (3, 3))[:, 0], [5, 320, 635], atol=0.01)
    used = [r.anchors_used for r in result.scenes[0].records]
    assert used == [0, 9]
    assert [r.anchors_missing for r in result.scenes[0].records] == [{"masked": 9}, {}]
    assert [r.anchor_years for r in result.scenes[0].records] == [{}, {2020: 9}]
    assert collection_from_interpretation(result)["anchors"] == {"found": 9, "masked": 9, "years": {"2020": 9}}
    assert backend.visions[0]["mask"].shape == (1, 1)  # all sea: as if there were no table
    assert not backend.visions[0]["mask"].any()
    assert backend.visions[1]["anchors"].shape == (1, 9, 64)
    np.testing.assert_allclose(backend.visions[1]["positions"][0, 5], (0.5, 1.0))
    assert result.scenes[0].anchor_year == 2020
    interpret(bundle, [path], ["count"], anchors=table, year=2022, session=session, overlap_px=0)  # type: ignore[arg-type]  # a fake
    assert table.asked[-1][2:] == (2022, False)  # a year that was asked for is not replaced by another
    with pytest.raises(InputError, match="holds no year 2018; it holds: 2019, 2020, 2022"):
        interpret(bundle, [path], ["count"], anchors=table, year=2018, session=session, overlap_px=0)  # type: ignore[arg-type]  # a fake


def test_masked_anchors_change_nothing_and_others_do(tmp_path: Path) -> None:
    bundle = write_fake_bundle(tmp_path / "b", Weights(4))
    session = Session(bundle, threads=1)
    grey = np.random.default_rng(1).random((28, 28), np.float32)

    def said(mask: np.ndarray | None, second: float = 0.5) -> tuple[int, ...]:
        vectors = np.full((2, 64), 0.5, np.float32)
        vectors[1] = second
        anchors = None if mask is None else SimpleNamespace(mask=mask, vectors=lambda: vectors)
        session.look(grey, anchors, np.array([[0, 0], [1, 1]], np.float32))
        return session.ask("caption").generation.ids

    plain = said(None)
    assert said(np.array([False, False])) == plain
    assert said(np.array([True, False])) != plain
    assert said(np.array([True, False])) == said(np.array([True, False]), second=-3.0)
    assert said(np.array([True, True])) != said(np.array([True, True]), second=-3.0)


def test_the_whole_device_side_runs_on_real_graphs(bundle: Bundle, tmp_path: Path) -> None:
    path = write_scene(tmp_path / "s.tif", sea(70, 90))
    seen: list[tuple[int, int]] = []
    result = interpret(
        bundle, [path], ALL, threads=1, overlap_px=8, progress=lambda done, total, _: seen.append((done, total))
    )
    assert isinstance(result, Interpretation)
    scene = result.scenes[0]
    assert seen == [(i + 1, 4) for i in range(4)]
    assert len(scene.records) == 4 * 4  # gibberish: nothing to classify
    assert {r.answer.generation.stop_reason for r in scene.records} <= {"eos", "max_new_tokens"}
    assert all(0 < r.answer.generation.confidence <= 1 for r in scene.records)
    assert set(scene.records[0].latency_ms) == {"read", "anchors", "vision", "prefix", "prefill", "decode"}
    json.dumps([r.latency_ms for r in scene.records])


@pytest.mark.parametrize(("tasks", "says"), [([], "none"), (["count", "paint"], "paint: allowed are caption, count")])
def test_unknown_tasks_are_refused_by_name(bundle: Bundle, tmp_path: Path, tasks: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        interpret(bundle, [tmp_path / "s.tif"], tasks)


def test_no_scene_and_an_absent_scene_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="0 scenes"):
        interpret(bundle, [], ["count"])
    with pytest.raises(SceneError, match=r"absent\.tif: no such file"):
        interpret(bundle, [tmp_path / "absent.tif"], ["count"])


def test_asking_before_looking_and_an_image_of_another_size_are_refused(bundle: Bundle) -> None:
    session = Session(bundle, threads=1)
    with pytest.raises(InputError, match="look"):
        session.ask("count")
    with pytest.raises(InputError, match=r"takes 28 x 28 px"):
        session.look(np.zeros((14, 28), np.float32))
