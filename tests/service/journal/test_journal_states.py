from __future__ import annotations

import os
import threading
from dataclasses import asdict
from pathlib import Path

import pytest
from journal_scenes import (
    SINKS,
    failed_message,
    finished,
    new_scene,
    outcome,
    scene_message,
    started,
    tile_message,
)

from fusar_edge.errors import EdgeError, InputError
from fusar_edge.service.journal import Journal, TileOutcome

NOW = 1_750_000_000.0


def kinds(journal: Journal) -> list[str]:
    return [event.kind for event in journal.events(0)]


def keys(journal: Journal, sink: str) -> list[str]:
    return [message.key for message in journal.due(sink, 1000, 4e9)]


# Scenes ---------------------------------------------------------------------------------------------------------------


def test_a_scene_that_is_offered_twice_is_accepted_once(journal: Journal) -> None:
    first, is_new = journal.accept(new_scene(), now=NOW)
    again, is_new_again = journal.accept(new_scene(priority=50, name="other name.tif"), now=NOW + 9)
    assert (is_new, is_new_again) == (True, False)
    assert again == first
    assert kinds(journal) == ["scene.accepted"]


def test_a_row_says_everything_that_the_scene_was_offered_with(journal: Journal) -> None:
    offered = new_scene(
        3, priority=-7, deadline=NOW + 60, submitted_as="https://host/a.tif", owned=True, source="upload"
    )
    row, _ = journal.accept(offered, now=NOW)
    assert {name: getattr(row, name) for name in asdict(offered)} == asdict(offered)
    assert (row.id, row.status, row.attempts, row.accepted_at) == (offered.id, "queued", 1, NOW)
    assert journal.scene(row.id) == row


@pytest.mark.parametrize(
    "change", [{"sha256": "f" * 64}, {"bundle_sha256": "c" * 64}, {"tasks": ("count",)}, {"label": "jet"}]
)
def test_another_file_bundle_task_or_label_is_another_scene(change: dict[str, object]) -> None:
    assert new_scene(0, **change).id != new_scene().id
    assert len(new_scene().id) == 16


def test_names_that_are_not_unicode_come_back_as_the_same_path(journal: Journal) -> None:
    path = Path(os.fsdecode(b"/data/sc\xe8ne.tif"))
    row, _ = journal.accept(new_scene(path=path, name=path.name))
    assert row.path == path
    assert row.name == "sc?ne.tif"
    journal.note_watched(path, 1, 2, "", "not a GeoTIFF")
    assert journal.watched(path, 1, 2) == ""


def test_a_priority_out_of_range_is_refused_with_the_range(journal: Journal) -> None:
    with pytest.raises(InputError, match="priority 101: allowed are -100 to 100"):
        journal.accept(new_scene(priority=101))
    assert journal.scenes() == []


def test_the_most_urgent_open_scene_comes_first(journal: Journal) -> None:
    offers = [
        new_scene(0),
        new_scene(1, deadline=NOW + 50),
        new_scene(2, deadline=NOW + 10),
        new_scene(3, priority=5),
        new_scene(4, priority=-1, deadline=NOW),
        new_scene(5),
    ]
    for k, offer in enumerate(offers):
        journal.accept(offer, now=NOW + k)
    journal.start(offers[0].id, {}, 1)
    assert [row.name for row in journal.open_scenes()] == ["3.tif", "2.tif", "1.tif", "0.tif", "5.tif", "4.tif"]


def test_pages_of_scenes_lose_none_that_came_in_the_same_moment(journal: Journal) -> None:
    for number in range(7):
        journal.accept(new_scene(number), now=NOW)
    seen, before = [], None
    while page := journal.scenes(limit=2, before=before):
        seen += [row.name for row in page]
        before = page[-1].accepted_at
    assert seen == [f"{number}.tif" for number in reversed(range(7))]
    assert journal.scenes("failed") == []


def test_the_facts_of_the_first_start_stay_in_force(journal: Journal) -> None:
    scene_id = started(journal, tiles=4)
    assert journal.start(scene_id, {"width": 99}, 7) == {"width": 10}
    row = journal.scene(scene_id)
    assert row is not None
    assert (row.facts, row.tiles_total, row.status) == ({"width": 10}, 4, "running")
    assert kinds(journal) == ["scene.accepted", "scene.started"]


def test_a_scene_is_done_only_with_an_outcome_for_every_tile(journal: Journal) -> None:
    scene_id = started(journal, tiles=2)
    journal.tile_done(scene_id, outcome(0))
    with pytest.raises(EdgeError, match="1 of 2 tiles"):
        journal.finish(scene_id, [scene_message(scene_id)])
    journal.tile_done(scene_id, TileOutcome(1, "skipped", "triage"))
    assert journal.finish(scene_id, [scene_message(scene_id)], now=NOW) is True
    assert journal.finish(scene_id, [scene_message(scene_id)]) is False
    row = journal.scene(scene_id)
    assert row is not None
    assert (row.status, row.finished_at, row.tiles_done) == ("done", NOW, 2)
    assert keys(journal, "files") == [scene_id]


def test_a_failed_scene_keeps_its_reason_and_goes_on_where_it_was_when_tried_again(journal: Journal) -> None:
    scene_id = started(journal)
    journal.tile_done(scene_id, outcome(0))
    assert journal.fail(scene_id, "the file has gone", [failed_message(scene_id, 1)]) is True
    assert journal.fail(scene_id, "again", [failed_message(scene_id, 2)]) is False
    assert journal.accept(new_scene())[0].status == "failed"
    row = journal.scenes("failed")[0]
    assert (row.reason, journal.counts()["dead_letters"]) == ("the file has gone", 1)
    again = journal.retry(scene_id)
    assert (again.status, again.reason, again.attempts, again.finished_at) == ("queued", "", 2, None)
    assert journal.start(scene_id, {"width": 99}, 9) == {"width": 10}
    assert journal.done_tiles(scene_id) == {0}
    assert keys(journal, "mqtt") == [f"{scene_id}/failed/1"]


def test_only_a_failed_scene_can_be_tried_again_and_only_an_open_one_started(journal: Journal) -> None:
    scene_id = finished(journal)
    with pytest.raises(InputError, match="is done: only a failed one can be tried again"):
        journal.retry(scene_id)
    with pytest.raises(InputError, match="is done: only an open one can start"):
        journal.start(scene_id, {}, 2)
    with pytest.raises(InputError, match="not in the journal"):
        journal.retry("0123456789abcdef")


# Tiles ----------------------------------------------------------------------------------------------------------------


def test_a_second_outcome_of_a_tile_changes_nothing_and_tells_nobody(journal: Journal) -> None:
    scene_id = started(journal)
    first, rival = outcome(1, "first"), outcome(1, "rival")
    assert journal.tile_done(scene_id, first, [tile_message(scene_id, 1)]) is True
    before = journal.read("SELECT * FROM scenes"), kinds(journal), journal.counts()
    changes = journal._writer.total_changes
    assert journal.tile_done(scene_id, rival, [tile_message(scene_id, 1)]) is False
    assert (journal.read("SELECT * FROM scenes"), kinds(journal), journal.counts()) == before
    assert journal._writer.total_changes == changes
    assert list(journal.tiles(scene_id)) == [first]


def test_a_tile_told_and_delivered_is_not_told_again(journal: Journal) -> None:
    scene_id = started(journal)
    journal.tile_done(scene_id, outcome(0), [tile_message(scene_id, 0)])
    journal.delivered("mqtt", keys(journal, "mqtt"))
    journal.tile_done(scene_id, outcome(0), [tile_message(scene_id, 0)])
    assert keys(journal, "mqtt") == []


def test_of_a_batch_only_the_new_tiles_are_told(journal: Journal) -> None:
    scene_id = started(journal, tiles=5)
    journal.tile_done(scene_id, outcome(1))
    messages = [tile_message(scene_id, index) for index in range(3)]
    assert journal.tiles_done(scene_id, [outcome(index) for index in range(3)], messages) == 2
    assert keys(journal, "mqtt") == [f"{scene_id}/0", f"{scene_id}/2"]
    assert [event.data["tiles_done"] for event in journal.events(2)] == [1, 2, 3]


def test_a_tile_beyond_the_plan_is_refused_and_nothing_of_its_batch_is_kept(journal: Journal) -> None:
    scene_id = started(journal, tiles=2)
    with pytest.raises(InputError, match="it has 2 tiles"):
        journal.tiles_done(scene_id, [outcome(0), outcome(2)], [tile_message(scene_id, 0)])
    assert journal.done_tiles(scene_id) == set()
    assert keys(journal, "mqtt") == []
    with pytest.raises(InputError, match="0 tiles"):
        journal.tile_done("0123456789abcdef", outcome(0))


def test_tiles_come_by_index_whatever_order_they_were_done_in_and_in_pages(journal: Journal) -> None:
    scene_id = started(journal, tiles=500)
    order = [*range(499, 249, -1), *range(250)]
    journal.tiles_done(scene_id, [outcome(index) for index in order])
    assert [tile.index for tile in journal.tiles(scene_id)] == list(range(500))
    assert [tile.index for tile in journal.tiles(scene_id, after=197, limit=201)] == list(range(198, 399))
    assert list(journal.tiles(scene_id, limit=0)) == []
    assert list(journal.tiles(scene_id, after=10**30)) == []


# Outbox ---------------------------------------------------------------------------------------------------------------


def test_each_sink_takes_its_own_copy_and_only_of_the_kinds_it_is_told_of(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "j.sqlite", {"files": {"scene", "failed"}, "mqtt": {"tile", "scene", "failed"}})
    scene_id = finished(journal)
    assert keys(journal, "files") == [scene_id]
    assert keys(journal, "mqtt") == [f"{scene_id}/0", f"{scene_id}/1", scene_id]
    journal.delivered("files", [scene_id])
    assert (keys(journal, "files"), journal.outbox_count("mqtt"), journal.outbox_count()) == ([], 3, 3)
    journal.delivered("mqtt", keys(journal, "mqtt"))
    assert journal.read("SELECT * FROM messages") == []
    journal.close()


def test_messages_of_a_sink_that_is_not_named_any_more_wait_uncounted(tmp_path: Path) -> None:
    with_mqtt = Journal.open(tmp_path / "j.sqlite", SINKS)
    finished(with_mqtt, tiles=1)
    with_mqtt.close()
    without = Journal.open(tmp_path / "j.sqlite", ["files"])
    assert (without.outbox_count(), without.counts()["outbox"]) == (2, {"files": 2})
    without.close()
    again = Journal.open(tmp_path / "j.sqlite", SINKS)
    assert len(keys(again, "mqtt")) == 2
    again.close()


def test_a_postponed_message_waits_and_a_dead_one_waits_to_be_revived(journal: Journal) -> None:
    scene_id = finished(journal, tiles=1)
    tile = f"{scene_id}/0"
    journal.postpone("mqtt", tile, NOW, "not now")
    assert [m.key for m in journal.due("mqtt", 10, NOW - 1)] == [scene_id]
    assert [(m.key, m.attempts) for m in journal.due("mqtt", 10, NOW)] == [(tile, 1), (scene_id, 0)]
    journal.delivered("mqtt", [scene_id])
    assert journal.next_due("mqtt") == NOW
    journal.bury("mqtt", tile, "403")
    assert (keys(journal, "mqtt"), journal.next_due("mqtt"), journal.counts()["dead_messages"]) == (
        [],
        None,
        {"mqtt": 1},
    )
    dead = journal.dead_messages()[0]
    assert (dead.sink, dead.key, dead.attempts, dead.reason) == ("mqtt", tile, 2, "403")
    assert journal.revive("mqtt") == 1
    assert keys(journal, "mqtt") == [tile]


# Events and the rest --------------------------------------------------------------------------------------------------


def test_events_tell_a_scenes_story_in_order(journal: Journal) -> None:
    scene_id = finished(journal, tiles=1)
    started(journal, 1)
    story = journal.events(0, scene_id)
    assert [event.kind for event in story] == ["scene.accepted", "scene.started", "tile.done", "scene.done"]
    assert story[2].data["answers"] == [{"task": "caption", "text": "a ship"}]
    assert story[3].data["status"] == "done"
    assert journal.last_event() == 6
    assert [event.id for event in journal.events(3, limit=2)] == [4, 5]
    assert journal.events(10**30) == []


def test_listeners_hear_of_what_was_committed_and_may_read_it(journal: Journal) -> None:
    heard: list[int] = []
    unsubscribe = journal.on_event(lambda: heard.append(journal.last_event()))
    scene_id = started(journal)
    journal.tile_done(scene_id, outcome(0))
    journal.tile_done(scene_id, outcome(0))  # nothing new
    unsubscribe()
    journal.tile_done(scene_id, outcome(1))
    assert heard == [1, 2, 3]


def test_a_listener_that_fails_does_not_undo_what_was_written(journal: Journal) -> None:
    def broken() -> None:
        raise RuntimeError("no")

    journal.on_event(broken)
    assert journal.accept(new_scene())[1] is True


def test_watched_files_are_known_until_they_change(journal: Journal, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    assert journal.watched(path, 10, 20) is None
    journal.note_watched(path, 10, 20, "", "it has no place")
    assert journal.watched(path, 10, 20) == ""
    assert journal.watched(path, 11, 20) is None
    journal.note_watched(path, 11, 20, "0123456789abcdef")
    assert (journal.watched(path, 11, 20), journal.watched(path, 10, 20)) == ("0123456789abcdef", None)
    event = journal.events(0)[0]
    assert (event.kind, event.data) == ("scene.refused", {"name": "a.tif", "reason": "it has no place"})
    assert journal.counts()["refused"] == 1


def test_counts_say_what_there_is(journal: Journal) -> None:
    finished(journal, 0, tiles=2)
    scene_id = started(journal, 1, tiles=3)
    journal.tiles_done(scene_id, [TileOutcome(0, "skipped", "nodata"), TileOutcome(1, "skipped", "triage")])
    counts = journal.counts()
    assert counts["scenes"] == {"queued": 0, "running": 1, "done": 1, "failed": 0}
    assert counts["tiles"] == {"answered": 2, "nodata": 1, "triage": 1}
    assert counts["outbox"] == {"files": 3, "mqtt": 3}


def test_pruning_forgets_old_told_scenes_and_events_but_nothing_that_is_still_owed(journal: Journal) -> None:
    old, owed, fresh = (finished(journal, k, now=now) for k, now in ((0, NOW), (1, NOW), (2, NOW + 9e6)))
    failed = started(journal, 3)
    journal.fail(failed, "x", [], now=NOW)
    for sink in SINKS:
        journal.delivered(sink, [key for key in keys(journal, sink) if not key.startswith(owed)])
    last = journal.last_event()
    assert journal.prune(keep_events=3, keep_done_days=1, now=NOW + 9e6) == [old]
    assert {row.id for row in journal.scenes()} == {owed, fresh, failed}
    assert [event.id for event in journal.events(0)] == [last - 2, last - 1, last]
    assert journal.last_event() == last
    assert list(journal.tiles(old)) == []
    assert journal.prune(keep_events=0, keep_done_days=1, now=NOW + 9e6) == []
    assert journal.last_event() == last
    assert journal.accept(new_scene(9))[1]
    assert journal.events(last)[0].id == last + 1


def test_pruning_forgets_watched_files_that_are_gone_but_not_those_of_a_folder_that_is_away(
    journal: Journal, tmp_path: Path
) -> None:
    there, gone, unplugged = tmp_path / "there.tif", tmp_path / "gone.tif", tmp_path / "disk" / "a.tif"
    there.touch()
    for path in (there, gone, unplugged):
        journal.note_watched(path, 1, 2, "0123456789abcdef", now=NOW)
    journal.prune(0, 1, now=NOW + 9e6)
    assert [journal.watched(path, 1, 2) is None for path in (there, gone, unplugged)] == [False, True, False]


def test_another_part_keeps_its_own_tables_in_the_journal(journal: Journal) -> None:
    script = "CREATE TABLE IF NOT EXISTS packets (id INTEGER PRIMARY KEY, note TEXT DEFAULT 'a;b');"
    journal.add_tables(script)
    journal.add_tables(script)
    with pytest.raises(ZeroDivisionError), journal.write() as cursor:
        cursor.execute("INSERT INTO packets (id) VALUES (1)")
        raise ZeroDivisionError
    assert journal.read("SELECT * FROM packets") == []
    with journal.write() as cursor:
        cursor.execute("INSERT INTO packets (id) VALUES (?)", (2,))
    assert [tuple(row) for row in journal.read("SELECT * FROM packets")] == [(2, "a;b")]


def test_many_threads_write_and_read_at_once(journal: Journal) -> None:
    scene_id = started(journal, tiles=80)
    fresh: list[bool] = []

    def work() -> None:
        for index in range(80):
            fresh.append(journal.tile_done(scene_id, outcome(index), [tile_message(scene_id, index)]))
            journal.counts()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (sum(fresh), len(fresh)) == (80, 320)
    row = journal.scene(scene_id)
    assert row is not None
    assert (row.tiles_done, journal.outbox_count("mqtt"), journal.counts()["tiles"]) == (80, 80, {"answered": 80})
    ids = [event.id for event in journal.events(0)]
    assert ids == sorted(set(ids))


def test_a_closed_journal_says_that_the_service_is_stopping(journal: Journal) -> None:
    journal.checkpoint()
    journal.close()
    journal.close()
    for call in (lambda: journal.scene("x"), lambda: journal.accept(new_scene()), journal.checkpoint):
        with pytest.raises(EdgeError, match="closed: the service is stopping"):
            call()


def test_an_outcome_comes_back_field_by_field(journal: Journal) -> None:
    scene_id = started(journal, tiles=1)
    full = TileOutcome(0, "skipped", "governor", [{"a": [1, 2.5]}], [{"b": None}], {"read": 0.25}, {"candidates": 3})
    journal.tile_done(scene_id, full)
    assert list(journal.tiles(scene_id)) == [full]
