"""Reads tiles ahead of the engines: always the next one of the most urgent scene."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fusar_edge.errors import EdgeError, SceneError
from fusar_edge.manifest import FILENAME, sha256_file
from fusar_edge.runtime.bundle import Bundle
from fusar_edge.runtime.interpreter import anchor_year_of
from fusar_edge.runtime.tile import AnchorLookup, Tile
from fusar_edge.sar.scene import open_scene
from fusar_edge.sar.triage import verdict
from fusar_edge.service.journal import SceneRow, TileOutcome
from fusar_edge.service.pipeline.engine import Holding, Observe
from fusar_edge.service.pipeline.governor import Governor
from fusar_edge.service.pipeline.ledger import Ledger, Stopped
from fusar_edge.service.pipeline.ready import PAUSE_POLL_S, Ready, ReadyTile
from fusar_edge.service.pipeline.work import SceneWork, check_unchanged, facts_from_scene, rank_of
from fusar_edge.service.settings import TriageSettings

if TYPE_CHECKING:
    from fusar_edge.anchors.table import AnchorTable

log = logging.getLogger(__name__)

OPEN_FILES = 4
"""A scene that is overtaken stays open for a while: opening one costs about as much as reading ten tiles."""
LEFT_OUT_AT_ONCE = 32
"""Tiles left out that are written together; a crash has them read again."""
FILES_RETRY_S = 2.0
"""While no file can be opened, no scene is to blame."""
IDLE_S = 5.0
"""The journal is looked at this often even if nobody says that a scene has come."""


class Reader(threading.Thread):
    """The one thread that reads scenes, judges tiles and looks anchors up."""

    def __init__(
        self,
        bundle: Bundle,
        ready: Ready,
        ledger: Ledger,
        triage: TriageSettings,
        governor: Governor,
        observe: Observe,
        stopping: threading.Event,
        lost: Callable[[str], None],
        table: AnchorTable | None,
        holding: Holding,
    ) -> None:
        super().__init__(name="reader", daemon=True)
        self._news = threading.Event()
        """A scene was accepted, or the end has come."""
        self.works: dict[str, SceneWork] = {}
        """Scenes that were begun and are not finished, by id. Replaced, never changed: others may look at it."""
        self.waiting: list[SceneRow] = []
        """Scenes that were not begun, most urgent first. Replaced likewise."""
        self._bundle, self._ready, self._ledger, self._stopping = bundle, ready, ledger, stopping
        self._lost, self._holding = lost, holding
        self._triage, self._governor, self._observe, self._table = triage, governor, observe, table
        self._files: OrderedDict[str, SceneWork] = OrderedDict()
        self._left_out_of: SceneWork | None = None
        self._left_out: list[TileOutcome] = []
        """Outcomes of `_left_out_of` that are not in the journal yet."""
        self.table_sha256 = sha256_file(table.path / FILENAME) if table else None

    def run(self) -> None:
        try:
            while not (self._stopping.is_set() or self._ready.closed):
                self._step()
            self._note_left_out()
        except Stopped:
            pass
        except Exception as problem:
            log.exception("the reader cannot go on")
            self._lost(f"reader: {type(problem).__name__}: {problem}")
        finally:
            for work in self._files.values():
                work.close_file()

    def wake(self) -> None:
        """Have it look at the journal, or at why it should end."""
        self._news.set()
        self._ready.nudge()

    def _step(self) -> None:
        """One tile, or a wait for one."""
        if self._news.is_set():
            self._look_around()
        chosen, paused = self._most_urgent(), self._governor.limits().paused
        row = chosen.row if isinstance(chosen, SceneWork) else chosen
        if chosen is not self._left_out_of or paused or (row and not self._ready.has_room(rank_of(row))):
            self._note_left_out()
        if paused:
            self._stopping.wait(PAUSE_POLL_S)
            return
        if row is None:
            if not self._news.wait(IDLE_S):
                self._news.set()
            return
        if not self._ready.wait_for_room(rank_of(row), self._news):
            return
        work = chosen if isinstance(chosen, SceneWork) else None
        try:
            with self._holding([row.id]):
                if work is None:
                    self._begin(row)
                else:
                    self._read_next(work)
        except Stopped:
            raise
        except Exception as problem:
            if out_of_files():  # which readers of rasters report as a damaged file
                log.warning("%s waits: this process may open no more files", row.name)
                self._stopping.wait(FILES_RETRY_S)
                return
            if isinstance(problem, EdgeError):
                self._fail(row, str(problem), work)
                return
            log.exception("%s cannot be read", row.name)
            self._fail(row, f"{type(problem).__name__}: {problem}", work)

    def _look_around(self) -> None:
        """Take notice of what the journal holds now."""
        self._news.clear()
        rows = {row.id: row for row in self._ledger.patiently(self._ledger.journal.open_scenes)}
        # One that failed and was queued again is begun anew; one whose end is just being written is not.
        self.works = {i: w for i, w in self.works.items() if i in rows and not (w.closed and w.is_before(rows[i]))}
        for work in [work for i, work in self._files.items() if work.closed or self.works.get(i) is not work]:
            self._forget_file(work)
        self.waiting = sorted((row for i, row in rows.items() if i not in self.works), key=rank_of)

    def _most_urgent(self) -> SceneWork | SceneRow | None:
        begun = min((w for w in self.works.values() if w.todo and not w.closed), key=lambda w: w.rank, default=None)
        if self.waiting and (begun is None or rank_of(self.waiting[0]) < begun.rank):
            return self.waiting[0]
        return begun

    def _begin(self, row: SceneRow) -> None:
        """Open a scene, agree with the journal on its plan, and leave out what is done already."""
        if row.bundle_sha256 != self._bundle.sha256:
            raise SceneError(
                f"{row.name} was accepted for the bundle {row.bundle_sha256[:12]}, the service runs "
                f"{self._bundle.sha256[:12]} now; submit it again"
            )
        check_unchanged(row)
        journal = self._ledger.journal
        scene = open_scene(Path(row.path), radiometry=self._bundle.radiometry)
        try:
            scene.acquired = scene.acquired or row.acquired
            year = anchor_year_of(self._table, None, scene.acquired)
            facts = facts_from_scene(scene, self._bundle, year, self.table_sha256)
            facts = self._ledger.patiently(lambda: journal.start(row.id, facts, facts["tiles"]))
            look_up = AnchorLookup(self._table, year, nearest=True) if self._table else None
            work = SceneWork(row, facts, journal.done_tiles(row.id), scene, look_up)
        except BaseException:
            scene.close()
            raise
        self.works = {**self.works, row.id: work}
        self.waiting = [other for other in self.waiting if other.id != row.id]
        self._note_file(work)
        self._ledger.finish_if_done(work)

    def _read_next(self, work: SceneWork) -> None:
        """Read -> triage -> anchors -> ready; or noted as left out."""
        index = work.todo[0]
        stride = self._governor.limits().stride
        left_out = stride > 1 and work.left_out_by(stride)
        read = TileOutcome(index=index, status="skipped", reason="governor") if left_out else self._read(work, index)
        work.todo.popleft()
        if isinstance(read, ReadyTile):
            if (given_back := self._ready.put(read)) is not None:
                given_back.work.todo.appendleft(given_back.tile.index)
            return
        self._left_out_of = work
        self._left_out.append(read)
        if len(self._left_out) == LEFT_OUT_AT_ONCE or not work.todo:
            self._note_left_out()

    def _note_left_out(self) -> None:
        """Into the journal with tiles that were left out: several at once, since each write waits for the disk."""
        work, outcomes = self._left_out_of, self._left_out
        self._left_out_of, self._left_out = None, []
        if work is not None and outcomes:
            start = time.perf_counter()
            self._ledger.tiles_done(work, outcomes)
            self._observe("commit", (time.perf_counter() - start) * 1e3)

    def _read(self, work: SceneWork, index: int) -> ReadyTile | TileOutcome:
        check_unchanged(work.row)
        if work.scene is None:
            work.scene = open_scene(Path(work.row.path), radiometry=self._bundle.radiometry)
        self._note_file(work)
        settings = self._bundle.settings
        tile = Tile(work.scene, index, work.windows[index], settings.coordinate_size)
        assert tile.image is not None, "it was just read"
        start = time.perf_counter()
        judged = verdict(tile.image, self._triage.mode)
        tile.latency_ms["triage"] = (time.perf_counter() - start) * 1e3
        kept = msgspec.to_builtins(judged)
        self._observe("read", tile.latency_ms["read"])
        self._observe("triage", tile.latency_ms["triage"])
        if not judged.keep:
            latency_ms = {part: round(ms, 3) for part, ms in tile.latency_ms.items()}
            return TileOutcome(index=index, status="skipped", reason=judged.reason, latency_ms=latency_ms, triage=kept)
        with work.place.lock if work.look_up else contextlib.nullcontext():
            tile.prepare(work.scene, work.look_up, settings)
        self._observe("anchors", tile.latency_ms["anchors"])
        return ReadyTile(work, tile, kept)

    def _fail(self, row: SceneRow, reason: str, work: SceneWork | None) -> None:
        self._ledger.fail(row, reason, work)
        self.works = {i: other for i, other in self.works.items() if i != row.id}
        self.waiting = [other for other in self.waiting if other.id != row.id]
        if work is not None:
            self._forget_file(work)

    def _note_file(self, work: SceneWork) -> None:
        """The file was used just now; the one that was not for longest is closed."""
        self._files[work.id] = work
        self._files.move_to_end(work.id)
        while len(self._files) > OPEN_FILES:
            self._files.popitem(last=False)[1].close_file()

    def _forget_file(self, work: SceneWork) -> None:
        work.close_file()
        if self._files.get(work.id) is work:
            del self._files[work.id]


def out_of_files() -> bool:
    """Whether the limit of open files, of this process or of the machine, is reached."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as problem:
        return problem.errno in (errno.EMFILE, errno.ENFILE)
    return False
