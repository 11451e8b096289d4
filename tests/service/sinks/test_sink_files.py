from __future__ import annotations

import json
import os
import resource
from functools import partial
from pathlib import Path

import pytest
from journal_scenes import failed_message, new_scene, scene_message
from stored_scenes import done_scene

from fusar_edge.runtime.bundle import Bundle
from fusar_edge.runtime.geojson import collection_bytes
from fusar_edge.service.journal import Journal
from fusar_edge.service.results import collection_from_journal
from fusar_edge.service.sinks.files import FilesSink
from fusar_edge.service.sinks.sink import SinkError


@pytest.fixture
def sink(journal: Journal, bundle: Bundle, tmp_path: Path) -> FilesSink:
    return FilesSink(tmp_path / "results", journal, partial(collection_from_journal, journal, bundle=bundle))


def test_a_finished_scene_has_its_result_and_its_item(
    journal: Journal, sink: FilesSink, bundle: Bundle, tmp_path: Path
) -> None:
    row = done_scene(journal)
    sink.send([scene_message(row.id)])
    folder = tmp_path / "results" / row.id
    assert (folder / "result.geojson").read_bytes() == collection_bytes(collection_from_journal(journal, row, bundle))
    item = json.loads((folder / "item.json").read_text())
    assert (item["id"], item["assets"]["result"]["href"]) == (row.id, "./result.geojson")
    assert sorted(os.listdir(folder)) == ["item.json", "result.geojson"]


def test_a_failed_scene_leaves_its_reason_until_it_is_done(journal: Journal, sink: FilesSink, tmp_path: Path) -> None:
    scene_id = journal.accept(new_scene(0))[0].id
    journal.fail(scene_id, "the file has gone", [])
    sink.send([failed_message(scene_id, 1)])
    folder = tmp_path / "results" / scene_id
    assert json.loads((folder / "error.json").read_text()) == {}
    journal.retry(scene_id)
    assert done_scene(journal, 0).id == scene_id
    sink.send([scene_message(scene_id)])
    assert sorted(os.listdir(folder)) == ["item.json", "result.geojson"]
    sink.send([failed_message(scene_id, 1)])  # once more, and late
    assert sorted(os.listdir(folder)) == ["item.json", "result.geojson"]


def test_writing_again_gives_the_same_bytes_and_removes_what_a_killed_process_left(
    journal: Journal, sink: FilesSink, tmp_path: Path
) -> None:
    row = done_scene(journal)
    folder = tmp_path / "results" / row.id
    folder.mkdir(parents=True)
    (folder / ".result.12345.geojson").write_text("half")
    sink.send([scene_message(row.id)])
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    sink.send([scene_message(row.id)])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    assert set(first) == {"item.json", "result.geojson"}


def test_a_full_disk_is_said_without_a_path_and_leaves_no_half_file(
    journal: Journal, sink: FilesSink, tmp_path: Path
) -> None:
    row = done_scene(journal)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    messages = [scene_message(row.id)]
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        with pytest.raises(SinkError, match="cannot be written: File too large") as caught:
            sink.send(messages)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(tmp_path) not in str(caught.value)
    assert os.listdir(tmp_path / "results" / row.id) == []
    sink.send(messages)
    assert sorted(os.listdir(tmp_path / "results" / row.id)) == ["item.json", "result.geojson"]


def test_what_was_written_before_the_trouble_is_said_to_be_sent(
    journal: Journal, sink: FilesSink, tmp_path: Path
) -> None:
    one, two = done_scene(journal, 0), done_scene(journal, 1)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / two.id).write_text("a file in the way")
    with pytest.raises(SinkError, match=two.id) as caught:
        sink.send([scene_message(one.id), scene_message(two.id)])
    assert caught.value.sent == (one.id,)


def test_a_scene_that_was_pruned_meanwhile_is_passed_over(journal: Journal, sink: FilesSink, tmp_path: Path) -> None:
    sink.send([scene_message("0123456789abcdef")])
    assert not (tmp_path / "results").exists()


def test_a_scene_whose_folder_is_of_no_use_does_not_hold_up_the_others(
    journal: Journal, sink: FilesSink, tmp_path: Path
) -> None:
    bad, good = done_scene(journal, 0), done_scene(journal, 1)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / bad.id).write_text("a file where the folder should be")
    messages = [scene_message(bad.id), scene_message(good.id)]
    with pytest.raises(SinkError, match="cannot be written") as error:
        sink.send(messages)
    assert list(error.value.sent) == [messages[1].key]
    assert list(error.value.refused) == [messages[0].key]
    assert (tmp_path / "results" / good.id / "result.geojson").is_file()
