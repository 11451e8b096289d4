"""Scenes through the whole pipeline, with an engine that says what it is told."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pipeline_fakes import Ended, FakeBackend, accept, fake_pipeline, small_tiles, write_tiles

from fusar_edge.manifest import Manifest
from fusar_edge.runtime.bundle import Bundle
from fusar_edge.runtime.geojson import collection_bytes, collection_from_interpretation
from fusar_edge.runtime.interpreter import interpret
from fusar_edge.runtime.session import Session
from fusar_edge.service.journal import Journal
from fusar_edge.service.results import collection_from_journal

GREYS = [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]
TASKS = ("caption", "count", "detect")


def counts(journal: Journal, scene_id: str) -> list[int | None]:
    """The count that was said of each tile; None of a tile that was left out."""
    return [t.features[0]["properties"]["value"] if t.features else None for t in journal.tiles(scene_id)]


def without_latency(collection: dict[str, Any]) -> dict[str, Any]:
    """As a reader of the file sees it, but for milliseconds and what `interpret` has no word for."""
    plain: dict[str, Any] = json.loads(collection_bytes(collection))
    plain.pop("service", None)
    for feature in plain["features"]:
        feature["properties"].pop("latency_ms", None)
    return plain


def test_every_tile_is_answered_by_its_own_image(
    bundle: Bundle, journal: Journal, ended: Ended, tmp_path: Path
) -> None:
    backend = FakeBackend(bundle)
    row = accept(journal, bundle, write_tiles(tmp_path / "s.tif", GREYS, nodata_at=(1, 0)))
    pipeline = fake_pipeline(bundle, journal, backend)
    pipeline.start()
    [row] = ended.wait(row.id)
    pipeline.stop()
    assert (row.status, row.tiles_total, row.tiles_done) == ("done", 6, 6)
    assert counts(journal, row.id) == [10, 20, 30, None, 50, 60]
    assert sum(backend.batches) == 5
    assert backend.closed_by is not None
    assert backend.closed_by.name == "engine 1"  # who made a session closes it


def test_the_stored_features_make_the_collection_that_interpret_makes(
    journal: Journal, ended: Ended, tmp_path: Path
) -> None:
    bundle = small_tiles(overlap_px=30)
    path = write_tiles(tmp_path / "s.tif", GREYS, nodata_at=(0, 0))
    expected = interpret(bundle, [path], TASKS, session=Session(bundle, backend=FakeBackend(bundle), grammar=False))
    row = accept(journal, bundle, path, TASKS)
    pipeline = fake_pipeline(bundle, journal, FakeBackend(bundle))
    pipeline.start()
    [row] = ended.wait(row.id)
    pipeline.stop()
    made = collection_from_journal(journal, row, bundle)
    assert without_latency(made) == without_latency(collection_from_interpretation(expected))
    assert made["counts"]["detections"] > 1
    assert made["counts"]["tiles_skipped"] == made["service"]["skipped"]["nodata"] == 1
    assert set(made["features"][0]["properties"]["latency_ms"]) >= {"read", "vision", "prefix", "decode"}


class HalfTable:
    """An anchor table that knows every second node."""

    def __init__(self, path: Path) -> None:
        self.path, self.years, self.manifest = path, [2019, 2020], Manifest(stage="anchors")
        (path / "manifest.json").write_text("{}")

    def lookup_xy(self, x: np.ndarray, y: np.ndarray, crs: Any, year: int | None, *, nearest: bool) -> Any:
        mask = np.arange(len(x)) % 2 == 0
        vectors = np.full((len(x), 64), 0.125, np.float32) * mask[:, None]
        counts = {"found": int(mask.sum()), "masked": int((~mask).sum()), "outside": 0, "no_year": 0}
        return SimpleNamespace(mask=mask, vectors=lambda: vectors, counts=counts, years={year: counts["found"]})


def test_anchors_take_part_as_in_interpret(
    bundle: Bundle, journal: Journal, ended: Ended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table: Any = HalfTable(tmp_path)
    monkeypatch.setattr("fusar_edge.service.pipeline.pipeline._open_table", lambda bundle, model: table)
    path = write_tiles(tmp_path / "s.tif", GREYS)
    session = Session(bundle, backend=FakeBackend(bundle), grammar=False)
    expected = interpret(bundle, [path], ("count",), anchors=table, session=session)
    row = accept(journal, bundle, path)
    pipeline = fake_pipeline(bundle, journal, FakeBackend(bundle))
    pipeline.start()
    [row] = ended.wait(row.id)
    pipeline.stop()
    made = collection_from_journal(journal, row, bundle)
    assert without_latency(made) == without_latency(collection_from_interpretation(expected))
    assert made["anchors"] == {"found": 6 * 41, "masked": 6 * 40, "years": {"2020": 6 * 41}}
    assert made["scenes"][0]["anchors_year"] == 2020


@pytest.mark.parametrize("workers", [1, 2])
def test_two_real_engines_say_what_one_says(journal: Journal, ended: Ended, tmp_path: Path, workers: int) -> None:
    from fusar_edge.data.simulator import simulate_scene, write_geotiff
    from fusar_edge.runtime.bundle import open_bundle
    from fusar_edge.service.pipeline import Pipeline
    from fusar_edge.service.settings import ModelSettings, TriageSettings

    bundle = open_bundle("default")
    write_geotiff(tmp_path / "s.tif", simulate_scene(7, (504, 944), 3.0, kind="coast", count=6))
    expected = interpret(bundle, [tmp_path / "s.tif"], ("count", "detect"), threads=1)
    row = accept(journal, bundle, tmp_path / "s.tif", ("count", "detect"))
    model = ModelSettings(workers=workers, threads=1)
    pipeline = Pipeline(bundle, journal, model, TriageSettings(mode="off"))
    pipeline.start()
    [row] = ended.wait(row.id)
    pipeline.stop()
    made = collection_from_journal(journal, row, bundle)
    assert [f["properties"].get("text") for f in made["features"]] == [
        f["properties"].get("text") for f in collection_from_interpretation(expected)["features"]
    ]


@pytest.mark.parametrize("stop_at", range(6))
def test_a_run_stopped_at_any_tile_goes_on_there_and_ends_with_the_same_records(
    bundle: Bundle, journal: Journal, ended: Ended, tmp_path: Path, stop_at: int
) -> None:
    row = accept(journal, bundle, write_tiles(tmp_path / "s.tif", GREYS))
    stopping, first = threading.Event(), FakeBackend(bundle)
    stopped: list[threading.Thread] = []

    def stop_there(question: str, grey: float) -> None:
        if len(first.asked) == stop_at:
            stopped.append(threading.Thread(target=pipeline.stop))
            stopped[0].start()
            assert pipeline._stopping.wait(10)
            stopping.set()

    first.before_question = stop_there
    pipeline = fake_pipeline(bundle, journal, first)
    pipeline.start()
    assert stopping.wait(10)
    stopped[0].join(10)
    assert len(first.asked) == stop_at + 1 == len(journal.done_tiles(row.id))  # the tile in work was finished
    second = FakeBackend(bundle)
    pipeline = fake_pipeline(bundle, journal, second)
    pipeline.start()
    [row] = ended.wait(row.id)
    pipeline.stop()
    assert row.status == "done"
    assert counts(journal, row.id) == [10, 20, 30, 40, 50, 60]
    assert len(second.asked) == 6 - len(first.asked)  # nothing was asked twice
    keys = [m.key for m in journal.due("sink", 100, row.finished_at or 0)]
    assert sorted(keys) == sorted([*(f"{row.id}/{i}" for i in range(6)), row.id])


def test_a_scene_that_was_complete_but_not_finished_is_finished_at_the_next_start(
    bundle: Bundle, journal: Journal, ended: Ended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fusar_edge.errors import BusyError

    def full(*arguments: Any) -> bool:
        raise BusyError("no space is left on the disk", 0.01)

    row = accept(journal, bundle, write_tiles(tmp_path / "s.tif", GREYS))
    with monkeypatch.context() as patch:
        patch.setattr(journal, "finish", full)
        pipeline = fake_pipeline(bundle, journal, FakeBackend(bundle))
        pipeline.start()
        ended.until(lambda: len(journal.done_tiles(row.id)) == 6)
        pipeline.stop()
    assert ended.row(row.id).status == "running"
    again = FakeBackend(bundle)
    pipeline = fake_pipeline(bundle, journal, again)
    pipeline.start()
    [row] = ended.wait(row.id)
    pipeline.stop()
    assert (row.status, again.asked) == ("done", [])


def test_a_result_is_kept_while_the_journal_has_no_room(
    bundle: Bundle, journal: Journal, ended: Ended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fusar_edge.errors import BusyError

    refusals, seen = [3], list[str]()
    really = journal.tiles_done

    def sometimes(*arguments: Any) -> int:
        if refusals[0]:
            refusals[0] -= 1
            seen.append(pipeline.status().waits_for)
            raise BusyError("no space is left on the disk", 0.01)
        return really(*arguments)

    monkeypatch.setattr(journal, "tiles_done", sometimes)
    backend = FakeBackend(bundle)
    row = accept(journal, bundle, write_tiles(tmp_path / "s.tif", GREYS))
    pipeline = fake_pipeline(bundle, journal, backend)
    pipeline.start()
    [row] = ended.wait(row.id)
    status = pipeline.status()
    pipeline.stop()
    assert (row.status, len(backend.asked)) == ("done", 6)
    assert seen[-1] == "no space is left on the disk"
    assert (status.waits_for, status.problem, status.eta_s) == ("", "", 0.0)


def test_an_urgent_scene_overtakes_at_the_next_tile(
    bundle: Bundle, journal: Journal, ended: Ended, tmp_path: Path
) -> None:
    slow = accept(journal, bundle, write_tiles(tmp_path / "slow.tif", [[0.1] * 3] * 2))
    urgent: list[str] = []
    backend = FakeBackend(bundle)
    read = threading.Event()

    def a_scene_comes(question: str, grey: float) -> None:
        if not urgent:
            path = write_tiles(tmp_path / "urgent.tif", [[0.9] * 2])
            urgent.append(accept(journal, bundle, path, priority=5).id)
            pipeline.wake()
            assert read.wait(10)  # else the engine might be faster than the reader

    def observe(stage: str, ms: float) -> None:
        if urgent and len(pipeline._reader.works) == 2 and stage == "read":
            read.set()

    backend.before_question = a_scene_comes
    pipeline = fake_pipeline(bundle, journal, backend, observe=observe, model={"vision_batch": 2, "ready_tiles": 4})
    pipeline.start()
    ended.until(lambda: bool(urgent))
    ended.wait(slow.id, *urgent)
    pipeline.stop()
    order = np.round(backend.asked, 1).tolist()
    assert sorted(order) == [0.1] * 6 + [0.9] * 2
    assert order.index(0.9) == 1  # it came during the first tile's question


def test_the_deadline_decides_between_scenes_of_one_priority(
    bundle: Bundle, journal: Journal, ended: Ended, tmp_path: Path
) -> None:
    rows = [
        accept(journal, bundle, write_tiles(tmp_path / f"{grey}.tif", [[grey]]), deadline=deadline)
        for grey, deadline in ((0.2, None), (0.4, 2e9), (0.6, 1.9e9))
    ]
    backend = FakeBackend(bundle)
    pipeline = fake_pipeline(bundle, journal, backend, model={"vision_batch": 1, "ready_tiles": 1})
    pipeline.start()
    ended.wait(*(row.id for row in rows))
    pipeline.stop()
    assert np.round(backend.asked, 1).tolist() == [0.6, 0.4, 0.2]


def test_no_more_tiles_are_read_than_may_wait(bundle: Bundle, journal: Journal, ended: Ended, tmp_path: Path) -> None:
    read, most, backend = [0], [0], FakeBackend(bundle)
    full = threading.Event()

    def observe(stage: str, ms: float) -> None:
        read[0] += stage == "read"
        most[0] = max(most[0], read[0] - len(backend.asked))
        if read[0] == 5:
            full.set()

    backend.before_vision = lambda greys: assert_wait(full)
    row = accept(journal, bundle, write_tiles(tmp_path / "s.tif", [[0.5] * 10] * 4))
    pipeline = fake_pipeline(bundle, journal, backend, observe=observe, model={"vision_batch": 2, "ready_tiles": 5})
    pipeline.start()
    [row] = ended.wait(row.id)
    pipeline.stop()
    assert (row.status, read[0]) == ("done", 40)
    assert most[0] == 5


def assert_wait(event: threading.Event) -> None:
    assert event.wait(10)


def test_tiles_are_seen_in_batches_where_so_many_are_ready(
    bundle: Bundle, journal: Journal, ended: Ended, tmp_path: Path
) -> None:
    backend, full, read = FakeBackend(bundle), threading.Event(), [0]

    def observe(stage: str, ms: float) -> None:
        read[0] += stage == "read"
        if read[0] == 6:
            full.set()

    backend.before_vision = lambda greys: assert_wait(full)
    row = accept(journal, bundle, write_tiles(tmp_path / "s.tif", GREYS))
    pipeline = fake_pipeline(bundle, journal, backend, observe=observe, model={"vision_batch": 3})
    pipeline.start()
    ended.wait(row.id)
    pipeline.stop()
    assert max(backend.batches) > 1
    assert sum(backend.batches) == 6
    assert counts(journal, row.id) == [10, 20, 30, 40, 50, 60]


def test_empty_sea_is_left_out_and_a_ship_is_asked_about(journal: Journal, ended: Ended, tmp_path: Path) -> None:
    from fusar_edge.data.simulator import simulate_scene, write_geotiff

    bundle = small_tiles(tile_px=252)
    scene = simulate_scene(5, (252, 504), 5.0, kind="open sea", count=0, looks=4)
    scene.power[100:112, 300:340] += 2.0
    write_geotiff(tmp_path / "s.tif", scene)
    backend = FakeBackend(bundle)
    row = accept(journal, bundle, tmp_path / "s.tif")
    pipeline = fake_pipeline(bundle, journal, backend, triage="cfar")
    pipeline.start()
    [row] = ended.wait(row.id)
    pipeline.stop()
    sea, ship = journal.tiles(row.id)
    assert (sea.status, sea.reason, ship.status) == ("skipped", "triage", "answered")
    assert ship.triage["candidates"] == 1
    assert len(backend.asked) == 1
    assert [m.key for m in journal.due("sink", 9, 2e9)] == [f"{row.id}/1", row.id]  # nobody is told of empty sea
    summary = json.loads(journal.due("sink", 9, 2e9)[1].payload)
    assert summary["counts"]["skipped"] == {"triage": 1}
    assert summary["bbox"] == row.facts["bbox"]
