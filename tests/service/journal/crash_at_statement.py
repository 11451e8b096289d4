"""Run by a test, in a process without threads: for each SQL statement of a scene's life, a child that is killed there.

The parent then opens the journal as the next service would, checks it, ends the work, and checks what came out.
Prints how many statements were tried.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from journal_scenes import SINKS, new_scene, outcome, scene_message, tile_message

from fusar_edge.service.journal import Journal

TILES = 2


def live(journal: Journal, delivered: Callable[[str, list[str]], None]) -> None:
    """What a service does with one scene; begun again after a crash, it goes on."""
    row, _ = journal.accept(new_scene())
    if row.status != "done":
        assert journal.start(row.id, {"width": 10}, TILES) == {"width": 10}
        for index in sorted(set(range(TILES)) - journal.done_tiles(row.id)):
            journal.tile_done(row.id, outcome(index), [tile_message(row.id, index)])
        journal.finish(row.id, [scene_message(row.id)])
    for sink in SINKS:
        keys = [message.key for message in journal.due(sink, 10, 4e9)]
        delivered(sink, keys)
        journal.delivered(sink, keys)


def child(path: Path, kill_at: int, record: Path) -> None:
    journal = Journal.open(path, SINKS)
    seen = 0

    def trace(statement: str) -> None:
        nonlocal seen
        seen += 1
        if seen == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    journal._writer.set_trace_callback(trace)
    live(journal, lambda sink, keys: note(record, sink, keys))
    journal.close()


def note(record: Path, sink: str, keys: list[str]) -> None:
    with record.open("a") as file:
        file.writelines(f"{sink} {key}\n" for key in keys)


def check(path: Path, record: Path) -> None:
    journal = Journal.open(path, SINKS)
    row = journal.scene(new_scene().id)
    if row is not None:
        done = journal.done_tiles(row.id)
        waiting = {message.key for message in journal.due("mqtt", 100, 4e9)}
        told = set() if not record.exists() else {line.split()[1] for line in record.read_text().splitlines()}
        assert row.tiles_done == len(done), "a tile without its count"
        assert {f"{row.id}/{index}" for index in done} <= waiting | told, "a tile that nobody is told of"
        assert (row.status == "done") == (row.id in waiting | told), "an end without its message"
        kinds = [event.kind for event in journal.events(0)]
        assert kinds.count("tile.done") == len(done), "a tile without its event"
    live(journal, lambda sink, keys: note(record, sink, keys))
    events = [event.kind for event in journal.events(0)]
    assert events == ["scene.accepted", "scene.started", *["tile.done"] * TILES, "scene.done"], events
    assert journal.outbox_count() == 0
    told_keys = record.read_text().splitlines()
    assert len(set(told_keys)) == len(SINKS) * (TILES + 1), told_keys
    # A sink is told again only where the process died between its thanks and the journal's note of it: one batch.
    assert len(told_keys) - len(set(told_keys)) <= TILES + 1, told_keys
    journal.close()


def main(folder: Path) -> None:
    Journal.open(folder / "empty.sqlite", SINKS).close()
    kill_at, killed = 0, True
    while killed:
        kill_at += 1
        place = folder / str(kill_at)
        place.mkdir()
        shutil.copy(folder / "empty.sqlite", place / "journal.sqlite")
        if (process := os.fork()) == 0:
            child(place / "journal.sqlite", kill_at, place / "told")
            os._exit(0)
        _, status = os.waitpid(process, 0)
        assert status in (0, signal.SIGKILL), status
        killed = status == signal.SIGKILL
        check(place / "journal.sqlite", place / "told")
        shutil.rmtree(place)
    print(kill_at - 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
