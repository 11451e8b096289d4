"""The watch folder: complete files, each once; refusals stand until the file changes; back-pressure waits."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from intake_station import LIMITS, Open, Station
from small_scenes import small_scene

from fusar_edge.errors import BusyError
from fusar_edge.service.intake.watch import Watcher
from fusar_edge.service.settings import WatchSettings


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Watched:
    """A folder, its watcher, and a clock that tests move."""

    def __init__(self, folder: Path, station: Station) -> None:
        self.folder, self.station, self.clock = folder, station, Clock()
        folder.mkdir(exist_ok=True)
        self.watcher = Watcher(station.intake, station.journal, WatchSettings(folder=folder), self.clock)

    def drop(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path

    def settle(self) -> None:
        """See what is there, let it become stable, look again."""
        self.watcher.look()
        self.clock.now += 2.5
        self.watcher.look()

    @property
    def names(self) -> list[str]:
        return sorted(row.name for row in self.station.journal.scenes())


@pytest.fixture
def watched(tmp_path: Path, station: Station) -> Watched:
    return Watched(tmp_path / "in", station)


def test_a_file_is_taken_once_when_it_has_been_still_for_long_enough(watched: Watched) -> None:
    watched.drop("a.tif", small_scene())
    watched.watcher.look()
    watched.clock.now += 1.9
    watched.watcher.look()
    assert watched.names == []
    watched.clock.now += 0.2
    watched.watcher.look()
    assert watched.names == ["a.tif"]
    watched.settle()
    assert watched.watcher.accepted == 1
    assert (watched.folder / "a.tif").exists()


def test_a_file_that_grows_is_left_alone(watched: Watched) -> None:
    data = small_scene()
    for length in (100, 200, len(data)):
        watched.drop("a.tif", data[:length])
        watched.watcher.look()
        watched.clock.now += 1.5
        watched.watcher.look()
        assert watched.names == []
    watched.settle()
    assert watched.names == ["a.tif"]


def test_a_file_that_somebody_has_open_for_writing_is_left_alone_however_still_it_is(watched: Watched) -> None:
    data = small_scene()
    with open(watched.folder / "a.tif", "wb") as file:
        file.write(data[:-100])
        file.flush()
        watched.settle()
        watched.settle()
        assert (watched.names, watched.watcher.refused) == ([], 0)
        file.write(data[-100:])
    watched.settle()
    assert watched.names == ["a.tif"]


def test_links_folders_hidden_and_unfinished_files_are_never_taken(watched: Watched, tmp_path: Path) -> None:
    data = small_scene()
    outside = tmp_path / "outside.tif"
    outside.write_bytes(data)
    (watched.folder / "link.tif").symlink_to(outside)
    (watched.folder / "sub.tif").mkdir()
    (watched.folder / "sub").mkdir()
    (watched.folder / "sub" / "in.tif").write_bytes(data)
    os.mkfifo(watched.folder / "pipe.tif")
    for name in (".a.tif", "a.tif.part", "a.tif.tmp", "a.PART", "a.png", "a.tif.aux.xml"):
        watched.drop(name, data)
    watched.settle()
    assert (watched.names, watched.watcher.refused) == ([], 0)
    watched.drop("B.TIFF", data)
    watched.settle()
    assert watched.names == ["B.tif"]


def test_a_refusal_is_told_once_and_stands_until_the_file_changes(watched: Watched) -> None:
    watched.drop("a.tif", b"not yet")
    watched.settle()
    watched.settle()
    assert watched.watcher.refused == 1
    refusals = [e for e in watched.station.journal.events(0) if e.kind == "scene.refused"]
    assert len(refusals) == 1
    assert "no GeoTIFF" in refusals[0].data["reason"]
    assert str(watched.folder) not in refusals[0].data["reason"]
    watched.drop("a.tif", small_scene())
    watched.settle()
    assert watched.names == ["a.tif"]


def test_a_restart_takes_nothing_again(station_with: Open, tmp_path: Path) -> None:
    before = Watched(tmp_path / "in", station_with())
    before.drop("good.tif", small_scene())
    before.drop("bad.tif", b"x")
    before.settle()
    assert (before.watcher.accepted, before.watcher.refused) == (1, 1)
    after = Watched(tmp_path / "in", station_with())
    after.settle()
    assert (after.watcher.accepted, after.watcher.refused) == (0, 0)


def test_while_there_is_no_room_files_wait_and_the_oldest_goes_first(watched: Watched) -> None:
    for seed in range(LIMITS.queued_scenes + 2):
        path = watched.drop(f"{9 - seed}.tif", small_scene(seed))
        os.utime(path, (seed, seed))
    watched.settle()
    assert watched.names == ["7.tif", "8.tif", "9.tif"]
    assert "3 scenes are waiting" in watched.watcher.problem
    assert watched.watcher.refused == 0
    first = watched.station.journal.open_scenes()[0]
    watched.station.journal.fail(first.id, "x", [])
    watched.watcher.look()
    assert watched.names == ["6.tif", "7.tif", "8.tif", "9.tif"]
    for row in watched.station.journal.open_scenes():
        watched.station.journal.fail(row.id, "x", [])
    assert watched.watcher.look() == WatchSettings().poll_s
    assert (len(watched.names), watched.watcher.problem) == (5, "")


def test_a_folder_that_goes_away_is_a_problem_until_it_is_back(watched: Watched) -> None:
    watched.folder.rmdir()
    watched.watcher.look()
    assert "cannot be read" in watched.watcher.problem
    watched.folder.mkdir()
    watched.drop("a.tif", small_scene())
    watched.settle()
    assert (watched.watcher.problem, watched.names) == ("", ["a.tif"])


def test_a_bug_that_one_file_hits_does_not_end_the_watch(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    offer = watched.station.intake.offer

    def fragile(path: Path, **options: object) -> object:
        if path.name == "bad.tif":
            raise ZeroDivisionError
        return offer(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(watched.station.intake, "offer", fragile)
    watched.drop("bad.tif", small_scene())
    watched.drop("good.tif", small_scene(1))
    watched.settle()
    assert (watched.names, watched.watcher.refused) == (["good.tif"], 1)


def test_the_thread_takes_what_is_dropped_and_ends_when_told(station: Station, tmp_path: Path) -> None:
    folder, taken = tmp_path / "in", threading.Event()
    folder.mkdir()
    station.journal.on_event(taken.set)
    settings = WatchSettings(folder=folder, stable_s=0.05, poll_s=0.01)
    watcher = Watcher(station.intake, station.journal, settings)
    watcher.start()
    (folder / "a.tif.part").write_bytes(small_scene())
    (folder / "a.tif.part").rename(folder / "a.tif")
    assert taken.wait(20)
    watcher.stop()
    assert not watcher.is_alive()
    assert [row.name for row in station.journal.scenes()] == ["a.tif"]


def test_a_file_that_cannot_be_read_now_is_tried_again(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> str:
        raise PermissionError(13, "Permission denied")

    watched.drop("a.tif", small_scene())
    with monkeypatch.context() as patch:
        patch.setattr("fusar_edge.service.intake.intake.sha256_file", denied)
        watched.settle()
        watched.watcher.look()
    assert "a.tif cannot be read (Permission denied)" in watched.watcher.problem
    assert watched.names == []
    watched.clock.now += 31
    watched.watcher.look()
    assert watched.names == ["a.tif"]
    watched.watcher.look()
    assert watched.watcher.problem == ""


def test_a_journal_that_fails_once_does_not_end_the_watch(
    station: Station, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusar_edge.service.intake.watch.LONGEST_WAIT_S", 0.01)
    watched = Watched(tmp_path / "in", station)
    looks: list[None] = []
    again = threading.Event()

    def look() -> float:
        looks.append(None)
        if len(looks) == 1:
            raise BusyError("the journal has no room", 1.0)
        again.set()
        return 10.0

    watched.watcher.look = look  # type: ignore[method-assign]
    watched.watcher.start()
    assert again.wait(10)
    watched.watcher.stop()
    assert "was not looked at (BusyError)" in watched.watcher.problem
