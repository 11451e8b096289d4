"""The journal against a dictionary, through any order of calls and any number of restarts."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from journal_scenes import SINKS, failed_message, new_scene, outcome, scene_message, tile_message

from fusar_edge.errors import EdgeError, InputError
from fusar_edge.service.journal import Journal

NUMBERS = st.integers(0, 2)
TILES = 3


@dataclass
class Model:
    """What a scene must be."""

    status: str = "queued"
    attempts: int = 1
    begun: bool = False
    tiles: set[int] = field(default_factory=set)


class JournalMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="journal-model-"))
        self.scenes: dict[str, Model] = {}
        self.outbox: dict[str, list[str]] = {sink: [] for sink in SINKS}
        self.told = 0
        self.journal = self.opened()

    def opened(self) -> Journal:
        return Journal.open(self.folder / "journal.sqlite", SINKS)

    def teardown(self) -> None:
        self.journal.close()
        shutil.rmtree(self.folder)

    def tell(self, key: str) -> None:
        for keys in self.outbox.values():
            keys.append(key)

    @rule(number=NUMBERS)
    def accept(self, number: int) -> None:
        row, is_new = self.journal.accept(new_scene(number))
        assert is_new == (row.id not in self.scenes)
        self.told += is_new
        self.scenes.setdefault(row.id, Model())

    @rule(number=NUMBERS)
    def start(self, number: int) -> None:
        scene_id = new_scene(number).id
        model = self.scenes.get(scene_id)
        if model is None or model.status in ("done", "failed"):
            with pytest.raises(InputError):
                self.journal.start(scene_id, {"n": 1}, TILES)
            return
        assert self.journal.start(scene_id, {"n": 1}, TILES) == {"n": 1}
        self.told += model.status == "queued"
        model.status, model.begun = "running", True

    @rule(number=NUMBERS, index=st.integers(0, TILES))
    def tile(self, number: int, index: int) -> None:
        scene_id = new_scene(number).id
        model = self.scenes.get(scene_id)
        if model is None or not model.begun or index >= TILES:
            with pytest.raises(InputError):
                self.journal.tile_done(scene_id, outcome(index), [tile_message(scene_id, index)])
            return
        fresh = self.journal.tile_done(scene_id, outcome(index), [tile_message(scene_id, index)])
        assert fresh == (index not in model.tiles)
        if fresh:
            model.tiles.add(index)
            self.tell(f"{scene_id}/{index}")
            self.told += 1

    @rule(number=NUMBERS)
    def finish(self, number: int) -> None:
        scene_id = new_scene(number).id
        model = self.scenes.get(scene_id)
        if model is None or (model.status != "done" and (model.status != "running" or len(model.tiles) < TILES)):
            with pytest.raises(EdgeError):
                self.journal.finish(scene_id, [scene_message(scene_id)])
            return
        assert self.journal.finish(scene_id, [scene_message(scene_id)]) == (model.status != "done")
        if model.status != "done":
            self.tell(scene_id)
            self.told += 1
        model.status = "done"

    @rule(number=NUMBERS)
    def fail(self, number: int) -> None:
        scene_id = new_scene(number).id
        model = self.scenes.get(scene_id)
        if model is None:
            return
        message = failed_message(scene_id, model.attempts)
        assert self.journal.fail(scene_id, "why", [message]) == (model.status in ("queued", "running"))
        if model.status in ("queued", "running"):
            model.status = "failed"
            self.tell(message.key)
            self.told += 1

    @rule(number=NUMBERS)
    def retry(self, number: int) -> None:
        scene_id = new_scene(number).id
        model = self.scenes.get(scene_id)
        if model is None or model.status != "failed":
            with pytest.raises(InputError):
                self.journal.retry(scene_id)
            return
        model.attempts += 1
        model.status = "queued"
        self.told += 1
        assert self.journal.retry(scene_id).attempts == model.attempts

    @rule(sink=st.sampled_from(SINKS), count=st.integers(1, 4))
    def deliver(self, sink: str, count: int) -> None:
        keys = [message.key for message in self.journal.due(sink, count, 4e9)]
        assert keys == self.outbox[sink][:count]
        self.journal.delivered(sink, keys)
        del self.outbox[sink][:count]

    @precondition(lambda self: self.scenes)
    @rule()
    def restart(self) -> None:
        self.journal.close()
        self.journal = self.opened()

    @invariant()
    def says_what_the_model_says(self) -> None:
        rows = {row.id: row for row in self.journal.scenes()}
        assert rows.keys() == self.scenes.keys()
        for scene_id, model in self.scenes.items():
            row = rows[scene_id]
            assert (row.status, row.attempts, row.tiles_done) == (model.status, model.attempts, len(model.tiles))
            assert self.journal.done_tiles(scene_id) == model.tiles
        for sink, keys in self.outbox.items():
            assert [message.key for message in self.journal.due(sink, 100, 4e9)] == keys
        assert self.journal.last_event() == self.told
        waiting = {key for keys in self.outbox.values() for key in keys}
        assert {row["key"] for row in self.journal.read("SELECT key FROM messages")} == waiting


TestJournalMachine = JournalMachine.TestCase
TestJournalMachine.settings = settings(
    max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
