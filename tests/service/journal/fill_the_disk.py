"""Run by a test on a disk (or with files) of limited size: fills the journal until it has no room, makes room, goes on.

argv: folder of the journal; "disk" where a file `ballast` beside it can be removed to make room, or "files" where the
limit on the size of files is the disk. Prints how many tiles were written before and after.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from journal_scenes import SINKS, outcome, started, tile_message

from fusar_edge.errors import BusyError
from fusar_edge.service.journal import Journal

LIMIT_BYTES = 600_000


def fill(journal: Journal, scene_id: str, start: int, stop: int) -> int:
    """Index of the first tile that found no room."""
    for index in range(start, stop):
        try:
            journal.tile_done(scene_id, outcome(index, "x" * 3000), [tile_message(scene_id, index)])
        except BusyError as problem:
            busy = problem
            break
    else:
        return stop
    assert busy.retry_after_s > 0
    assert str(journal.path) not in str(busy)
    assert "goes on by itself" in str(busy)
    return index


def main(folder: Path, how: str) -> None:
    journal = Journal.open(folder / "journal.sqlite", SINKS)
    scene_id = started(journal, tiles=10_000)
    if how == "files":
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, resource.RLIM_INFINITY))
    full_at = fill(journal, scene_id, 0, 10_000)
    assert 0 < full_at < 10_000, full_at
    assert fill(journal, scene_id, full_at, full_at + 1) == full_at, "there is room after all"
    row = journal.scene(scene_id)
    assert row is not None
    assert row.tiles_done == full_at == len(journal.done_tiles(scene_id)) == journal.outbox_count("mqtt")
    if how == "files":
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    else:
        (folder / "ballast").unlink()
    assert fill(journal, scene_id, full_at, full_at + 20) == full_at + 20
    assert journal.done_tiles(scene_id) == set(range(full_at + 20))
    assert journal.read("PRAGMA integrity_check")[0][0] == "ok"
    journal.close()
    print(full_at, full_at + 20)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
