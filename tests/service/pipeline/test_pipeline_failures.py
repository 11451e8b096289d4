"""What goes wrong: files, scenes, tiles, engines; and what limits the work."""

from __future__ import annotations

import resource
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipeline_fakes import Ended, FakeBackend, accept, fake_pipeline, write_tiles

from fusar_edge.errors import BundleError, BusyError, DeviceError, InputError, SceneError
from fusar_edge.runtime.bundle import Bundle
from fusar_edge.service.journal import Journal
from fusar_edge.service.pipeline import Pipeline, WorkLimits, reader

GREYS = [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]


def test_a_scene_that_is_damaged_in_its_middle_fails_with_its_reason_and_the_next_is_done(
    bundle: Bundle, journal: Journal, ended: Ended, tmp_path: Path
) -> None:
    path = write_tiles(tmp_path / "bad.tif", [[0.5] * 3] * 20, grain=True)
    damaged = bytearray(path.read_bytes())
    middle = len(damaged) * 45 // 100  # between two of the six places that are sampled when a scene is opened
    damaged[middle : middle + 5000] = bytes(5000)
    path.write_bytes(damaged)
    bad = accept(journal, bundle, path)
    good = accept(journal, bundle, write_tiles(tmp_path / "good.tif", GREYS))
    pipeline = fake_pipeline(bundle, journal, FakeBackend(bundle))
    pipeline.start()
    bad, good = ended.wait(bad.id, good.id)
    pipeline.stop()
    assert (bad.status, good.status) == ("failed", "done")
    assert "cannot be read; the file is cut or damaged" in bad.reason
    assert str(tmp_path) not in bad.reason  # clients see it
    failed = [m for m in journal.due("sink", 2000, 2e9) if m.kind == "failed"]
    assert [m.key for m in failed] == [f"{bad.id}/failed/1"]


def test_a_file_that_was_changed_or_taken_away_fails(
    bundle: Bundle, journal: Journal, ended: Ended, tmp_path: Path
) -> None:
    changed, gone = (write_tiles(tmp_path / f"{name}.tif", [[g]]) for name, g in (("changed", 0.2), ("gone", 0.4)))
    rows = accept(journal, bundle, changed), accept(journal, bundle, gone)
    with changed.open("ab") as file:
        file.write(b"more")
    gone.unlink()
    pipeline = fake_pipeline(bundle, journal, FakeBackend(bundle))
    pipeline.start()
    reasons = [row.reason for row in ended.wait(*(row.id for row in rows))]
    pipeline.stop()
    assert "changed after it was accepted" in reasons[0]
    assert "has gone" in reasons[1]


def test_while_no_file_can_be_opened_no_scene_is_to_blame(
    bundle: Bundle, journal: Journal, ended: Ended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Idle connections can use up what a process may open; GDAL then calls a good file damaged."""
    row = accept(journal, bundle, write_tiles(tmp_path / "s.tif", GREYS))
    opened, tried = reader.open_scene, threading.Event()

    def starved(*arguments: Any, **options: Any) -> Any:
        tried.set()
        raise SceneError("s.tif is not a readable GeoTIFF; the file is cut or damaged")

    monkeypatch.setattr(reader, "FILES_RETRY_S", 0.01)
    monkeypatch.setattr(reader, "out_of_files", lambda: True)
    monkeypatch.setattr(reader, "open_scene", starved)
    pipeline = fake_pipeline(bundle, journal, FakeBackend(bundle))
    pipeline.start()
    assert tried.wait(10)
    monkeypatch.setattr(reader, "open_scene", opened)
    [row] = ended.wait(row.id)
    pipeline.stop()
    assert row.status == "done"


def test_a_process_that_may_open_no_more_files_knows_it() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert not reader.out_of_files()
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        assert reader.out_of_files()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_scene_of_another_bundle_fails(bundle: Bundle, journal: Journal, ended: Ended, tmp_path: Path) -> None:
    row = accept(journal, bundle, write_tiles(tmp_path / "s.tif", GREYS))
    with journal.write() as cursor:
        cursor.execute("UPDATE scenes SET bundle_sha256 = ?", ("f" * 64,))
    pipeline = fake_pipeline(bundle, journal, FakeBackend(bundle))
    pipeline.start()
    [row] = ended.wait(row.id)
    pipeline.stop()
    assert "accepted for the bundle ffffffffffff" in row.reason


def refuse(grey: float, problem: Exception) -> Any:
    """Raise when that tile is asked about."""

    def ask(question: str, of: float) -> None:
        if abs(of - grey) < 0.02:
            raise problem

    return ask


def test_a_retried_scene_goes_on_at_the_tile_that_failed(
    bundle: Bundle, journal: Journal, ended: Ended, tmp_path: Path
) -> None:
    backend = FakeBackend(bundle)
    backend.before_question = refuse(0.3, InputError("a question of 2000 tokens leaves no room to answer"))
    row = accept(journal, bundle, write_tiles(tmp_path / "s.tif", GREYS))
    pipeline = fake_pipeline(bundle, journal, backend, model={"vision_batch": 1, "ready_tiles": 1})
    pipeline.start()
    [row] = ended.wait(row.id)
    assert (row.status, row.reason) == ("failed", "a question of 2000 tokens leaves no room to answer")
    assert journal.done_tiles(row.id) == {0, 1}
    del backend.before_question
    backend.before_question = lambda question, grey: None
    backend.asked.clear()
    journal.retry(row.id)
    pipeline.wake()
    [row] = ended.wait(row.id)
    pipeline.stop()
    assert row.status == "done"
    np.testing.assert_allclose(backend.asked, [0.3, 0.4, 0.5, 0.6], atol=0.01)


def test_a_scene_whose_failure_is_being_written_is_not_begun_again(
    bundle: Bundle, journal: Journal, ended: Ended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, fail, open_scenes = threading.Semaphore(0), journal.fail, journal.open_scenes

    def slowly(*arguments: Any) -> bool:
        while looked.acquire(blocking=False):
            pass
        for _ in range(2):  # before the second look it has acted on the first
            pipeline.wake()
            assert looked.acquire(timeout=10)
        return fail(*arguments)

    def look() -> Any:
        rows = open_scenes()
        looked.release()
        return rows

    monkeypatch.setattr(journal, "fail", slowly)
    monkeypatch.setattr(journal, "open_scenes", look)

    def refuse_once(question: str, grey: float) -> None:
        backend.before_question = lambda question, grey: None
        raise InputError("no room")

    backend = FakeBackend(bundle)
    backend.before_question = refuse_once
    bad = accept(journal, bundle, write_tiles(tmp_path / "bad.tif", [[0.6, 0.2]]))
    pipeline = fake_pipeline(bundle, journal, backend)
    pipeline.start()
    [bad] = ended.wait(bad.id)
    good = accept(journal, bundle, write_tiles(tmp_path / "good.tif", GREYS[:1]))
    pipeline.wake()
    [good] = ended.wait(good.id)
    status = pipeline.status()
    pipeline.stop()
    assert (bad.status, good.status, status.problem) == ("failed", "done", "")
    assert len(backend.asked) == 3  # those of the good one


@pytest.mark.parametrize("problem", [RuntimeError("kernel"), DeviceError("out of memory")], ids=["surprise", "device"])
def test_a_surprise_fails_the_scene_and_the_next_one_gets_a_new_session(
    bundle: Bundle, journal: Journal, ended: Ended, tmp_path: Path, problem: Exception
) -> None:
    made: list[FakeBackend] = []

    def make() -> FakeBackend:
        made.append(FakeBackend(bundle))
        made[-1].before_question = refuse(0.3, problem)
        return made[-1]

    bad = accept(journal, bundle, write_tiles(tmp_path / "bad.tif", GREYS))
    good = accept(journal, bundle, write_tiles(tmp_path / "good.tif", [[0.7, 0.8]]))
    pipeline = fake_pipeline(bundle, journal, make)
    pipeline.start()
    bad, good = ended.wait(bad.id, good.id)
    status = pipeline.status()
    pipeline.stop()
    assert (bad.status, good.status) == ("failed", "done")
    assert bad.reason.startswith("tile 2: ")
    assert bad.reason.endswith(str(problem))
    assert len(made) == 3  # one for a second attempt, one for the next scene
    assert made[0].closed_by is made[2].closed_by is not None
    assert (status.running, status.problem) == (True, "")


def test_a_failure_for_once_fails_nothing(bundle: Bundle, journal: Journal, ended: Ended, tmp_path: Path) -> None:
    made: list[FakeBackend] = []

    def make() -> FakeBackend:
        made.append(FakeBackend(bundle))
        if len(made) == 1:
            made[0].before_question = refuse(0.3, DeviceError("out of memory"))
        return made[-1]

    row = accept(journal, bundle, write_tiles(tmp_path / "s.tif", GREYS))
    pipeline = fake_pipeline(bundle, journal, make)
    pipeline.start()
    [row] = ended.wait(row.id)
    pipeline.stop()
    assert (row.status, len(made)) == ("done", 2)
    values = [outcome.features[0]["properties"]["value"] for outcome in journal.tiles(row.id)]
    assert values == [10, 20, 30, 40, 50, 60]


def test_of_a_batch_only_the_tile_to_blame_fails_its_scene(
    bundle: Bundle, journal: Journal, ended: Ended, tmp_path: Path
) -> None:
    read, full = [0], threading.Event()

    def observe(stage: str, ms: float) -> None:
        read[0] += stage == "read"
        if read[0] == 3:
            full.set()

    def vision(greys: list[float]) -> None:
        assert full.wait(10)
        batches.append(len(greys))
        if any(grey > 0.85 for grey in greys):
            raise RuntimeError("bad image")

    def make() -> FakeBackend:
        backend = FakeBackend(bundle)
        backend.before_vision = vision
        return backend

    rows = [accept(journal, bundle, write_tiles(tmp_path / f"{g}.tif", [[g]])) for g in (0.2, 0.9, 0.4)]
    batches: list[int] = []
    pipeline = fake_pipeline(bundle, journal, make, observe=observe)
    pipeline.start()
    first = pipeline.submit(lambda session: assert_set(full))  # so that the first batch holds all
    first.result(10)
    ends = [row.status for row in ended.wait(*(row.id for row in rows))]
    pipeline.stop()
    assert ends == ["done", "failed", "done"]
    assert max(batches) > 1


def test_an_engine_that_cannot_be_opened_again_stops_everything_and_no_scene_is_lost(
    bundle: Bundle, journal: Journal, ended: Ended, tmp_path: Path
) -> None:
    made: list[FakeBackend] = []

    def make() -> FakeBackend:
        if made:
            raise DeviceError("the NVIDIA driver finds no GPU")
        made.append(FakeBackend(bundle))
        made[-1].before_question = refuse(0.3, RuntimeError("kernel"))
        return made[-1]

    row = accept(journal, bundle, write_tiles(tmp_path / "s.tif", GREYS))
    pipeline = fake_pipeline(bundle, journal, make)
    pipeline.start()
    for thread in (*pipeline._engines, pipeline._reader):
        thread.join(10)
    status = pipeline.status()
    assert not status.running
    assert "finds no GPU" in status.problem
    with pytest.raises(BusyError, match="lost its engine"):
        pipeline.submit(lambda session: None)
    pipeline.stop()
    assert ended.row(row.id).status == "running"  # it goes on where the engine works


def test_of_two_engines_the_other_one_goes_on(bundle: Bundle, journal: Journal, ended: Ended, tmp_path: Path) -> None:
    made, lost = list[FakeBackend](), threading.Event()

    def die(question: str, grey: float) -> None:
        lost.set()
        raise RuntimeError("kernel")

    def make() -> FakeBackend:
        if len(made) == 2:
            raise DeviceError("no GPU")
        made.append(FakeBackend(bundle))
        made[-1].before_question = die if len(made) == 1 else (lambda question, grey: assert_set(lost))
        return made[-1]

    row = accept(journal, bundle, write_tiles(tmp_path / "s.tif", GREYS))
    pipeline = fake_pipeline(bundle, journal, make, workers=2, model={"vision_batch": 1})
    pipeline.start()
    [row] = ended.wait(row.id)
    status = pipeline.status()
    pipeline.stop()
    assert (row.status, status.running, status.problem) == ("done", True, "")


def assert_set(event: threading.Event) -> None:
    assert event.wait(10)


def test_an_engine_that_cannot_be_opened_is_an_error_at_the_start(bundle: Bundle, journal: Journal) -> None:
    def make() -> FakeBackend:
        raise BundleError("vision.onnx: ONNX Runtime cannot open it")

    pipeline = fake_pipeline(bundle, journal, make)
    with pytest.raises(BundleError, match="cannot open it"):
        pipeline.start()
    assert not pipeline.status().running


class Limits:
    def __init__(self, limits: WorkLimits) -> None:
        self.now = limits

    def limits(self) -> WorkLimits:
        return self.now


def test_paused_nothing_is_begun_and_questions_are_refused(
    bundle: Bundle, journal: Journal, ended: Ended, tmp_path: Path
) -> None:
    governor, backend = Limits(WorkLimits(paused=True, reason="96 degrees")), FakeBackend(bundle)
    row = accept(journal, bundle, write_tiles(tmp_path / "s.tif", GREYS))
    asked_while_paused = threading.Event()
    polls = [0]

    def limits() -> WorkLimits:
        polls[0] += 1
        if polls[0] == 4:
            asked_while_paused.set()
        return governor.now

    governor.limits = limits  # type: ignore[method-assign]
    pipeline = fake_pipeline(bundle, journal, backend, governor=governor)
    pipeline.start()
    assert asked_while_paused.wait(10)
    assert (backend.asked, ended.row(row.id).status) == ([], "queued")
    with pytest.raises(BusyError, match="96 degrees"):
        pipeline.submit(lambda session: None)
    governor.now = WorkLimits()
    [row] = ended.wait(row.id)
    pipeline.stop()
    assert row.status == "done"


def test_a_pause_holds_tiles_that_are_ready_too(bundle: Bundle, journal: Journal, ended: Ended, tmp_path: Path) -> None:
    governor, backend = Limits(WorkLimits()), FakeBackend(bundle)

    def pause(question: str, grey: float) -> None:
        governor.now = WorkLimits(paused=True)

    backend.before_question = pause
    row = accept(journal, bundle, write_tiles(tmp_path / "s.tif", GREYS))
    pipeline = fake_pipeline(bundle, journal, backend, governor=governor)
    pipeline.start()
    ended.until(lambda: bool(journal.done_tiles(row.id)))
    pipeline.stop()
    assert journal.done_tiles(row.id) == {0}  # the tile in work was finished


def test_a_stride_leaves_every_second_tile_out_as_on_a_chessboard(
    bundle: Bundle, journal: Journal, ended: Ended, tmp_path: Path
) -> None:
    row = accept(journal, bundle, write_tiles(tmp_path / "s.tif", GREYS))
    pipeline = fake_pipeline(bundle, journal, FakeBackend(bundle), governor=Limits(WorkLimits(stride=2)))
    pipeline.start()
    [row] = ended.wait(row.id)
    pipeline.stop()
    assert [t.reason or t.status for t in journal.tiles(row.id)] == [
        "answered", "governor", "answered", "governor", "answered", "governor",
    ]  # fmt: skip


def test_fewer_tasks_are_asked_and_a_tile_of_which_none_is_left_is_left_out(
    bundle: Bundle, journal: Journal, ended: Ended, tmp_path: Path
) -> None:
    governor = Limits(WorkLimits(tasks=("count",)))
    both = accept(journal, bundle, write_tiles(tmp_path / "a.tif", [[0.3]]), ("caption", "count"))
    none = accept(journal, bundle, write_tiles(tmp_path / "b.tif", [[0.4]]), ("caption",))
    pipeline = fake_pipeline(bundle, journal, FakeBackend(bundle), governor=governor)
    pipeline.start()
    ended.wait(both.id, none.id)
    pipeline.stop()
    [outcome] = journal.tiles(both.id)
    assert [f["properties"]["task"] for f in outcome.features] == ["count"]
    assert [t.reason for t in journal.tiles(none.id)] == ["governor"]


def held_pipeline(bundle: Bundle, journal: Journal, path: Path) -> tuple[Pipeline, FakeBackend, threading.Event]:
    """At work on the first tile until the event is set."""
    backend, go, begun = FakeBackend(bundle), threading.Event(), threading.Event()

    def hold(question: str, grey: float) -> None:
        begun.set()
        assert go.wait(10)

    backend.before_question = hold
    accept(journal, bundle, path)
    pipeline = fake_pipeline(bundle, journal, backend)
    pipeline.start()
    assert begun.wait(10)
    return pipeline, backend, go


def test_a_question_goes_before_the_next_tile_and_the_ninth_that_waits_is_refused(
    bundle: Bundle, journal: Journal, tmp_path: Path
) -> None:
    pipeline, backend, go = held_pipeline(bundle, journal, write_tiles(tmp_path / "s.tif", GREYS))
    futures: list[Future[int]] = [pipeline.submit(lambda session: len(backend.asked)) for _ in range(8)]
    with pytest.raises(BusyError, match="8 questions wait already") as refused:
        pipeline.submit(lambda session: 0)
    assert refused.value.retry_after_s > 0
    assert pipeline.status().working[0][1] == 0
    go.set()
    assert [future.result(10) for future in futures] == [1] * 8
    pipeline.stop()


def test_what_a_question_raises_comes_to_who_asked_and_the_engine_goes_on(
    bundle: Bundle, journal: Journal, ended: Ended, tmp_path: Path
) -> None:
    pipeline, _, go = held_pipeline(bundle, journal, write_tiles(tmp_path / "s.tif", [[0.2, 0.3]]))
    bad, cancelled = pipeline.submit(lambda session: session.ask("paint")), pipeline.submit(lambda session: 1)
    assert cancelled.cancel()
    go.set()
    with pytest.raises(BundleError, match="paint"):
        bad.result(10)
    row = journal.scenes()[0]
    [row] = ended.wait(row.id)
    pipeline.stop()
    assert row.status == "done"


def test_a_question_that_waits_when_the_service_stops_is_refused(
    bundle: Bundle, journal: Journal, tmp_path: Path
) -> None:
    pipeline, _, go = held_pipeline(bundle, journal, write_tiles(tmp_path / "s.tif", GREYS))
    future = pipeline.submit(lambda session: 1)
    pipeline.stop(timeout_s=0)
    with pytest.raises(BusyError, match="stopping"):
        future.result(0)
    go.set()
    pipeline.stop()
