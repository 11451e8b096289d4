"""One engine: a thread that owns a session, sees tiles in batches, asks them, and answers questions in between."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial

import numpy as np

from fusar_edge.errors import DeviceError, EdgeError
from fusar_edge.runtime.geojson import answer_feature, box_geometry
from fusar_edge.runtime.session import SeenInput, Session
from fusar_edge.runtime.tile import see_tiles
from fusar_edge.service.journal import TileOutcome
from fusar_edge.service.pipeline.governor import Governor
from fusar_edge.service.pipeline.ledger import Ledger, Stopped
from fusar_edge.service.pipeline.ready import Job, Ready, ReadyTile
from fusar_edge.service.results import stored_detections

log = logging.getLogger(__name__)
Observe = Callable[[str, float], None]
"""Stage, milliseconds."""
Holding = Callable[[Sequence[str]], AbstractContextManager[None]]
"""Notes scene ids as in hand, for a block."""


class EngineLost(Exception):
    """No session could be opened in place of one that broke."""


class Engine(threading.Thread):
    """Works until `ready` is closed; `lost` is told where it cannot go on."""

    def __init__(
        self,
        name: str,
        open_session: Callable[[], Session],
        ready: Ready,
        ledger: Ledger,
        governor: Governor,
        observe: Observe,
        lost: Callable[[str], None],
        *,
        batch: int,
        table_sha256: str | None,
        holding: Holding,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.opened = threading.Event()
        self.problem: Exception | None = None
        """Why the first session could not be opened; look after `opened` is set."""
        self.working: list[ReadyTile] = []
        self._open_session, self._ready, self._ledger = open_session, ready, ledger
        self._governor, self._observe, self._lost = governor, observe, lost
        self._batch, self._table_sha256, self._holding = batch, table_sha256, holding
        self._session: Session | None = None

    def run(self) -> None:
        try:
            self._session = self._open_session()
        except Exception as problem:
            self.problem = problem
            return
        finally:
            self.opened.set()
        try:
            while (taken := self._ready.take(self._batch)) is not None:
                self._do(taken)
        except Stopped:
            pass
        except Exception as problem:
            log.exception("%s cannot go on", self.name)
            self._ready.put_back(self.working)
            self._lost(f"{self.name}: {_last_line(problem)}")
        finally:
            self.working = []
            self._close()

    @property
    def session(self) -> Session:
        assert self._session is not None, "the thread opens it first"
        return self._session

    def _do(self, taken: Job | list[ReadyTile]) -> None:
        if isinstance(taken, Job):
            self._reply(taken)
            return
        self.working = taken
        with self._holding([ready.work.id for ready in taken]):
            if taken[0].tile.visual is None:
                self._see(taken)
            else:
                self._answer(taken[0])
                self._ready.release(taken)
        self.working = []

    def _reply(self, job: Job) -> None:
        if not job.future.set_running_or_notify_cancel():
            return
        start = time.perf_counter()
        try:
            job.future.set_result(job.run(self.session))
        except Exception as problem:
            job.future.set_exception(problem)
        self._observe("question", (time.perf_counter() - start) * 1e3)

    def _see(self, tiles: Sequence[ReadyTile]) -> None:
        """Vision for all; where that fails, for one after the other, so that it is known which one is to blame."""
        try:
            see_tiles(self.session, [ready.tile for ready in tiles])
            seen = tiles
        except Exception as problem:
            if not _is_plain(problem):
                log.error("vision of %d tiles:", len(tiles), exc_info=problem)
                self._renew()
            seen = [ready for ready in tiles if self._tried(ready, partial(self._see_alone, ready), 1)]
            self._ready.release([ready for ready in tiles if ready not in seen])
        for ready in seen:
            self._observe("vision", ready.tile.latency_ms["vision"])
        self._ready.put_back(seen)

    def _see_alone(self, ready: ReadyTile) -> None:
        see_tiles(self.session, [ready.tile])

    def _answer(self, ready: ReadyTile) -> None:
        """Ask the tasks that are allowed now, and keep what was said."""
        allowed = self._governor.limits().tasks
        tasks = [task for task in ready.work.tasks if allowed is None or task in allowed]
        start = time.perf_counter()
        outcomes: list[TileOutcome] = []
        if not tasks:
            outcomes.append(TileOutcome(ready.tile.index, "skipped", "governor", triage=ready.triage))
        elif not self._tried(ready, lambda: outcomes.append(self._asked(ready, tasks)), 2):
            return
        answered = time.perf_counter()
        self._ledger.tiles_done(ready.work, outcomes)
        self._observe("commit", (time.perf_counter() - answered) * 1e3)
        self._observe("tile", (answered - start) * 1e3)

    def _asked(self, ready: ReadyTile, tasks: Sequence[str]) -> TileOutcome:
        work = ready.work
        records = ready.tile.answers(self.session, tasks, work.row.label, None)
        self._observe("prefix", ready.tile.latency_ms["prefix"])
        for stage in ("prefill", "decode"):
            self._observe(stage, sum(record.latency_ms[stage] for record in records))
        common = work.common(self.session.bundle.sha256, self._table_sha256)
        found = [detection for record in records for detection in record.detections]
        return TileOutcome(
            index=ready.tile.index,
            status="answered",
            features=[answer_feature(record, work.place, common) for record in records],
            detections=stored_detections(found, [box_geometry(d.box, work.place) for d in found]),
            latency_ms={part: round(ms, 3) for part, ms in ready.tile.latency_ms.items()},
            triage=ready.triage,
        )

    def _tried(self, ready: ReadyTile, attempt: Callable[[], None], attempts: int) -> bool:
        """Whether it succeeded; else the scene has failed.

        After anything but a plain EdgeError the session is not trusted and made anew, and another attempt may follow: a
        GPU may fail for once. EngineLost, with the scene left as it is, where no session can be made.
        """
        while True:
            try:
                attempt()
                return True
            except Exception as problem:
                attempts -= 1
                if _is_plain(problem):
                    self._ledger.fail(ready.work.row, str(problem), ready.work)
                    return False
                log.error("%s, tile %d:", ready.work.row.name, ready.tile.index, exc_info=problem)
                self._renew()
                if not attempts:
                    reason = f"tile {ready.tile.index}: {_last_line(problem)}"
                    self._ledger.fail(ready.work.row, reason, ready.work)
                    return False

    def _renew(self) -> None:
        self._close()
        try:
            self._session = self._open_session()
            size = self.session.bundle.settings.image_size
            self.session.take(self.session.see([SeenInput(np.zeros((size, size), np.float32))])[0])
        except Exception as problem:
            raise EngineLost(f"no new session after a failure: {_last_line(problem)}") from problem
        log.warning("%s: a new session was opened", self.name)

    def _close(self) -> None:
        """Of what this thread made, by this thread. A session that broke may not even close."""
        session, self._session = self._session, None
        if session is not None:
            try:
                session.close()
            except Exception:
                log.exception("%s: its session did not close", self.name)


def _is_plain(problem: Exception) -> bool:
    """Raised on purpose, about what was given: the session is as good as before."""
    return isinstance(problem, EdgeError) and not isinstance(problem, DeviceError)


def _last_line(problem: BaseException) -> str:
    return traceback.format_exception_only(problem)[-1].strip()
