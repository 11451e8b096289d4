"""A scene that kills the service does so three times, not for ever."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pipeline_fakes import Ended, FakeBackend, accept, fake_pipeline, write_tiles

from fusar_edge.runtime.bundle import Bundle
from fusar_edge.service.journal import Journal
from fusar_edge.service.pipeline.in_hand import InHand

IDS = ["0123456789abcdef", "fedcba9876543210"]


def test_a_scene_that_kills_the_service_is_set_aside_and_the_next_one_is_done(
    bundle: Bundle, journal: Journal, ended: Ended, tmp_path: Path
) -> None:
    fatal = accept(journal, bundle, write_tiles(tmp_path / "fatal.tif", [[0.1, 0.2, 0.3, 0.4]]))
    other = accept(journal, bundle, write_tiles(tmp_path / "other.tif", [[0.5, 0.6]]))
    command = [sys.executable, str(Path(__file__).with_name("die_at_tile.py")), str(journal.path)]
    codes = [subprocess.run(command, capture_output=True, timeout=60, check=False).returncode for _ in range(5)]
    assert codes == [9, 9, 9, 0, 0]
    failed = ended.row(fatal.id)
    assert failed.status == "failed"
    assert "the service died 3 times in a row while it was at this scene, after tile 2 of 4" in failed.reason
    assert ended.row(other.id).status == "done"
    retried = journal.retry(fatal.id)
    assert retried.deaths == 0


def test_progress_in_between_clears_a_scene(bundle: Bundle, journal: Journal, tmp_path: Path) -> None:
    row = accept(journal, bundle, write_tiles(tmp_path / "s.tif", [[0.1, 0.2]]))
    deaths = []
    for done in (0, 0, 1, 1):
        with journal.write() as cursor:
            cursor.execute("UPDATE scenes SET tiles_done = ?", (done,))
        died = journal.note_death(row.id)
        assert died is not None
        deaths.append(died.deaths)
    assert deaths == [1, 2, 1, 2]


def test_a_service_that_is_stopped_leaves_nothing_in_hand(
    bundle: Bundle, journal: Journal, ended: Ended, tmp_path: Path
) -> None:
    row = accept(journal, bundle, write_tiles(tmp_path / "s.tif", [[0.1, 0.2]]))
    pipeline = fake_pipeline(bundle, journal, FakeBackend(bundle))
    pipeline.start()
    ended.wait(row.id)
    pipeline.stop()
    assert InHand(journal.path.with_name("in-hand"), 4).open() == []


def test_what_was_in_hand_is_found_once(tmp_path: Path) -> None:
    held = InHand(tmp_path / "in-hand", 2)
    assert held.open() == []
    with held.holding(0, IDS[:1]), held.holding(2, [*IDS, IDS[0]]):
        dead = InHand(tmp_path / "in-hand", 2)
        assert dead.open() == IDS
        assert InHand(tmp_path / "in-hand", 2).open() == []
        dead.close()
        dead.close()
    held.close()
