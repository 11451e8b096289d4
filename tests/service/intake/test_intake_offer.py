"""Accepting: once, durably, with everything in its place or nothing at all."""

from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from intake_station import LIMITS, Open, Station
from small_scenes import small_scene

from fusar_edge.errors import BusyError, InputError, SceneError
from fusar_edge.manifest import sha256_file
from fusar_edge.service.journal import Journal, Message
from fusar_edge.service.pipeline import Pipeline
from fusar_edge.service.settings import LimitSettings, ModelSettings, TriageSettings


def upload(station: Station, seed: int = 0, **options: Any) -> Any:
    path = station.upload(small_scene(seed))
    return station.intake.offer(path, name="s.tif", source="upload", owned=True, **options)


def test_an_upload_moves_into_its_scene_and_wakes_the_pipeline(station: Station) -> None:
    path = station.upload(small_scene())
    sha256 = sha256_file(path)
    row, new = station.intake.offer(path, name="../a b.tif", source="upload", owned=True)
    assert (new, len(station.wakes)) == (True, 1)
    assert row.path == station.intake.scenes / row.id / "a_b.tif"
    assert row.path.is_absolute()
    assert (sha256_file(row.path), row.sha256) == (sha256, sha256)
    status = row.path.stat()
    assert (row.size_bytes, row.mtime_ns, row.owned) == (status.st_size, status.st_mtime_ns, True)
    assert not path.exists()
    assert station.journal.scene(row.id) == row


def test_the_same_file_and_question_is_the_same_scene(station: Station) -> None:
    first, _ = upload(station)
    again, new = upload(station)
    assert (again.id, new, len(station.wakes)) == (first.id, False, 1)
    assert [p.name for p in station.left if p.is_file()] == ["s.tif"]
    other, new = upload(station, tasks=["count"])
    assert new
    assert other.id != first.id


def test_the_same_file_sent_many_times_at_once_is_one_scene(station: Station) -> None:
    data, all_here = small_scene(), threading.Barrier(6)

    def send(number: int) -> tuple[str, bool]:
        path = station.intake.incoming / f"{number}.part"
        path.write_bytes(data)
        all_here.wait()
        row, new = station.intake.offer(path, name=f"{number}.tif", source="upload", owned=True)
        return row.id, new

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(send, range(6)))
    assert len({scene_id for scene_id, _ in answers}) == 1
    assert sum(new for _, new in answers) == 1
    assert len([p for p in station.left if p.is_file()]) == 1


def test_a_watched_file_stays_and_survives_being_removed(station: Station, tmp_path: Path) -> None:
    path = tmp_path / "dropped.tif"
    path.write_bytes(small_scene())
    row, _ = station.intake.offer(path, name=path.name, source="watch", owned=False)
    assert path.exists()
    assert os.path.samefile(path, row.path)
    path.unlink()
    assert row.path.stat().st_size == row.size_bytes
    assert row.owned


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM])
def test_where_no_link_can_be_made_the_file_itself_is_read(
    station: Station, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "dropped.tif"
    path.write_bytes(small_scene())
    row, _ = station.intake.offer(path, name=path.name, source="watch", owned=False)
    assert (row.path, row.owned) == (path, False)


def test_tasks_come_in_the_order_of_work_and_unknown_ones_are_refused(station: Station) -> None:
    row, _ = upload(station, tasks=["classify", "caption", "caption"])
    assert row.tasks == ("caption", "detect", "classify")
    for tasks in (["paint"], []):
        with pytest.raises(InputError, match="allowed are caption, count, grid, classify, detect"):
            upload(station, 1, tasks=tasks)


@pytest.mark.parametrize(
    "wrong",
    [{"label": ""}, {"label": "x" * 65}, {"label": "a\nb"}, {"priority": 101}, {"priority": -101},
     {"deadline": float("nan")}, {"deadline": -1.0}],
)  # fmt: skip
def test_a_question_beyond_its_bounds_is_refused_and_leaves_nothing(station: Station, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        upload(station, **wrong)
    assert not station.left


def test_a_full_queue_says_when_to_come_back(station: Station) -> None:
    for seed in range(LIMITS.queued_scenes):
        upload(station, seed)
    with pytest.raises(BusyError, match="3 scenes are waiting") as busy:
        upload(station, 99)
    assert busy.value.retry_after_s > 0
    assert len([p for p in station.left if p.is_file()]) == 3
    _, new = upload(station, 0)  # known: there is nothing to queue
    assert not new


def test_one_scene_is_put_in_its_place_at_a_time(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, most, other_is_in = 0, 0, threading.Event()

    def slow_sync(*_: Path) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        other_is_in.set() if inside > 1 else other_is_in.wait(0.2)
        inside -= 1

    monkeypatch.setattr("fusar_edge.service.intake.intake._sync", slow_sync)

    def send(seed: int) -> bool:
        path = station.intake.incoming / f"{seed}.part"
        path.write_bytes(small_scene(seed))
        return station.intake.offer(path, name="s.tif", source="upload", owned=True)[1]

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(send, range(2))) == [True, True]
    assert most == 1


def test_the_queue_is_bounded_also_by_many_at_once(station: Station) -> None:
    all_here = threading.Barrier(8)

    def send(seed: int) -> bool:
        path = station.intake.incoming / f"{seed}.part"
        path.write_bytes(small_scene(seed))
        all_here.wait()
        try:
            return station.intake.offer(path, name="s.tif", source="upload", owned=True)[1]
        except BusyError:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(send, range(8))) == LIMITS.queued_scenes
    assert len(station.journal.open_scenes()) == LIMITS.queued_scenes


def test_undelivered_results_and_a_full_disk_hold_new_scenes_back(station_with: Open) -> None:
    station = station_with(limits=LimitSettings(outbox_messages=1, free_disk_mib=1))
    row, _ = upload(station)
    station.journal.fail(row.id, "x", [Message("k", "failed", row.id, None, b"{}")])
    with pytest.raises(BusyError, match="could not be delivered"):
        station.intake.admit()
    station = station_with(limits=LimitSettings(free_disk_mib=1 << 40))
    with pytest.raises(BusyError, match="no space"):
        station.intake.admit()


def test_a_disk_that_fills_up_leaves_nothing_half_done(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        with pytest.raises(BusyError, match="no space"):
            upload(station)
    assert not station.left
    with monkeypatch.context() as disk:

        def busy(*_: Any, **__: Any) -> None:
            raise BusyError("no space", 5.0)

        disk.setattr(Journal, "accept", busy)
        with pytest.raises(BusyError):
            upload(station)
    assert not station.left
    assert upload(station)[1]


def test_a_file_that_changes_while_it_is_looked_at_is_refused(
    station: Station, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "s.tif", station.intake.prober.facts
    path.write_bytes(small_scene())

    def slow(*args: Any, **options: Any) -> Any:
        facts = real(*args, **options)
        path.write_bytes(small_scene(1))
        return facts

    monkeypatch.setattr(station.intake.prober, "facts", slow)
    with pytest.raises(SceneError, match="changed while"):
        station.intake.offer(path, name="s.tif", source="watch", owned=False)
    assert not station.left
    assert path.exists()


def test_a_file_that_has_gone_or_cannot_be_read_is_refused(station: Station, tmp_path: Path) -> None:
    with pytest.raises(SceneError, match="has gone"):
        station.intake.offer(tmp_path / "none.tif", name="none.tif", source="watch", owned=False)


def test_the_time_of_acquisition_that_came_with_a_scene_is_kept_with_it(station: Station) -> None:
    row, _ = upload(station, acquired="2021-01-05T01:50:04Z")
    assert row.acquired == "2021-01-05T01:50:04Z"
    row, _ = upload(station, 1)
    assert row.acquired is None


def test_the_pipeline_takes_that_time_where_the_file_has_none(station: Station) -> None:
    row, _ = upload(station, acquired="2021-01-05T01:50:04Z")
    started = threading.Event()

    def look() -> None:
        if any(event.kind == "scene.started" for event in station.journal.events(0)):
            started.set()

    station.journal.on_event(look)
    session: Any = SimpleNamespace(close=lambda: None)
    parts = station.intake.bundle, station.journal, ModelSettings(workers=1), TriageSettings()
    pipeline = Pipeline(*parts, open_session=lambda: session)
    pipeline.start()
    assert started.wait(20)
    pipeline.stop()
    known = station.journal.scene(row.id)
    assert known is not None
    assert known.facts["acquired"] == "2021-01-05T01:50:04Z"


def test_a_sweep_removes_what_was_on_its_way_and_keeps_what_was_accepted(station: Station) -> None:
    row, _ = upload(station)
    station.upload(b"half of a scene")
    (station.intake.incoming / "folder.part").mkdir()
    orphan = station.intake.scenes / "0123456789abcdef"
    orphan.mkdir()
    (orphan / "s.tif").write_bytes(b"x")
    (station.intake.scenes / "somebody's").mkdir()
    station.intake.sweep()
    assert not list(station.intake.incoming.iterdir())
    assert {p.name for p in station.intake.scenes.iterdir()} == {row.id, "somebody's"}
    assert row.path.exists()


def test_a_failed_scene_that_is_sent_again_is_tried_again_with_the_new_file(station: Station, tmp_path: Path) -> None:
    """Its first file lay where it could not be linked, and has gone since."""
    first = tmp_path / "elsewhere.tif"
    first.write_bytes(small_scene())
    row, new = station.intake.offer(first, name="a.tif", source="watch", owned=False)
    assert new
    station.journal.start(row.id, {"width": 10}, 2)
    station.journal.fail(row.id, "a.tif: its file has gone; submit it again", [])
    again, taken = station.intake.offer(station.upload(small_scene()), name="a.tif", source="upload", owned=True)
    assert (again.id, again.status, again.attempts, taken) == (row.id, "queued", row.attempts + 1, True)
    assert Path(again.path).read_bytes() == small_scene()
    assert again.owned
    known, taken = station.intake.offer(station.upload(small_scene()), name="a.tif", source="upload", owned=True)
    assert (known.status, taken) == ("queued", False)
