from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from journal_scenes import SINKS, finished, new_scene, outcome, started, tile_message

from fusar_edge.errors import BusyError, EdgeError
from fusar_edge.service.journal import Journal, database

HERE = Path(__file__).parent
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent.parent), *filter(None, sys.path)])}
FILL = [sys.executable, "-W", "error", str(HERE / "fill_the_disk.py")]


def test_a_journal_whose_files_may_not_grow_waits_and_goes_on(tmp_path: Path) -> None:
    result = subprocess.run(
        [*FILL, str(tmp_path), "files"], capture_output=True, text=True, timeout=60, env=ENV, check=False
    )
    assert result.returncode == 0, result.stderr


def test_a_journal_on_a_full_disk_waits_and_goes_on(tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    mount = f"mount -t tmpfs -o size=8m none {tmp_path} && head -c 3000000 /dev/zero > {tmp_path}/ballast"
    can = unshare and subprocess.run([unshare, "-rm", "sh", "-c", mount], capture_output=True, check=False)
    if not can or can.returncode:
        pytest.skip("no small disk can be mounted here (unshare -rm)")
    script = f"{mount} && exec {' '.join(FILL)} {tmp_path} disk"
    command = [str(unshare), "-rm", "sh", "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=ENV, check=False)
    assert result.returncode == 0, result.stderr


def test_a_disk_that_turns_read_only_is_waited_for_and_read_meanwhile(journal: Journal) -> None:
    scene_id = started(journal)
    journal._writer.execute("PRAGMA query_only=1")  # SQLITE_READONLY for each write, as from a read-only disk
    with pytest.raises(BusyError, match="read-only"):
        journal.tile_done(scene_id, outcome(0), [tile_message(scene_id, 0)])
    with pytest.raises(BusyError, match="read-only"):
        journal.accept(new_scene(1))
    assert journal.scenes()[0].tiles_done == 0
    journal._writer.execute("PRAGMA query_only=0")
    assert journal.tile_done(scene_id, outcome(0), [tile_message(scene_id, 0)])
    assert journal.outbox_count("mqtt") == 1


def test_a_write_that_fails_halfway_leaves_nothing_behind(journal: Journal) -> None:
    scene_id = started(journal)
    journal._writer.execute("CREATE TRIGGER no BEFORE INSERT ON outbox BEGIN SELECT RAISE(ABORT, 'no'); END")
    with pytest.raises(sqlite3.IntegrityError):
        journal.tile_done(scene_id, outcome(0), [tile_message(scene_id, 0)])
    journal._writer.execute("DROP TRIGGER no")
    assert (journal.done_tiles(scene_id), journal.last_event(), journal.counts()["tiles"]) == (
        set(),
        2,
        {"answered": 0},
    )
    assert journal.tile_done(scene_id, outcome(0), [tile_message(scene_id, 0)])


def test_another_process_that_holds_the_journal_is_waited_for_and_then_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "LOCK_WAIT_S", 0.05)
    journal = Journal.open(tmp_path / "journal.sqlite", SINKS)
    other = sqlite3.connect(tmp_path / "journal.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(BusyError, match="another process holds it"):
        journal.accept(new_scene())
    other.execute("ROLLBACK")
    other.close()
    assert journal.accept(new_scene())[1]
    journal.close()


@pytest.mark.parametrize("damage", ["header", "middle", "garbage"])
def test_a_damaged_journal_is_named_and_left_as_it_is(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal.open(path, SINKS)
    for number in range(30):
        finished(journal, number)
    journal.close()
    data = bytearray(path.read_bytes())
    if damage == "header":
        data[:100] = bytes(100)
    elif damage == "middle":
        data[4096 : len(data) // 2] = bytes(len(data) // 2 - 4096)
    else:
        data = bytearray(b"not a database, but some text\n" * 300)
    path.write_bytes(data)
    with pytest.raises(EdgeError, match=r"journal\.sqlite: .*put back a copy"):
        Journal.open(path, SINKS)
    assert path.read_bytes() == data


def test_damage_that_shows_while_the_service_runs_is_no_reason_to_wait(journal: Journal) -> None:
    finished(journal)
    journal.checkpoint()
    data = bytearray(journal.path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    journal.path.write_bytes(data)
    with pytest.raises(EdgeError, match="is damaged") as caught:
        journal.scenes()
    assert not isinstance(caught.value, BusyError)


def test_a_journal_of_a_newer_version_is_refused_with_both_versions(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(EdgeError, match=r"journal\.sqlite .*version 99 .*reads 1"):
        Journal.open(path, SINKS)


def test_a_place_that_cannot_hold_a_journal_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "journal.sqlite", tmp_path):
        with pytest.raises(EdgeError, match="cannot be opened"):
            Journal.open(path, SINKS)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(EdgeError, match="cannot be opened"):
        Journal.open(tmp_path / "journal.sqlite", SINKS)
    tmp_path.chmod(0o755)
