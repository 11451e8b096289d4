"""The whole pipeline: one reader, one or several engines, and what others ask of it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from fusar_edge.errors import BusyError
from fusar_edge.runtime.bundle import TENSORRT, Bundle, engine_files
from fusar_edge.runtime.session import Session, check_table
from fusar_edge.service.journal import Journal
from fusar_edge.service.pipeline.engine import Engine, Observe
from fusar_edge.service.pipeline.governor import Governor, NoLimits, WorkLimits
from fusar_edge.service.pipeline.in_hand import InHand
from fusar_edge.service.pipeline.ledger import Ledger
from fusar_edge.service.pipeline.reader import Reader
from fusar_edge.service.pipeline.ready import Job, Ready
from fusar_edge.service.settings import ModelSettings, TriageSettings

if TYPE_CHECKING:
    from fusar_edge.anchors.table import AnchorTable

log = logging.getLogger(__name__)
T = TypeVar("T")

DEATHS = 3
"""A scene that was in hand when the service died so often in a row, with no tile finished in between, fails."""
ENGINES_MIB = 1024
"""All engines together, unless `workers` says otherwise: each holds the graphs for itself."""


@dataclass(frozen=True)
class PipelineStatus:
    running: bool
    """The reader and at least one engine work."""
    problem: str
    """Why nothing is worked on any more; empty while something is."""
    waits_for: str
    """Why nothing can be written just now, as a full disk; empty where it can."""
    ready_tiles: int
    """Read, and waiting for an engine."""
    working: list[tuple[str, int]]
    """(scene id, tile index) that engines are at."""
    tiles_per_s: float
    """Answered and left out, over the last minute."""
    eta_s: float | None
    """Until all that was accepted is done, scenes not begun taken as large as the others; None where nobody knows."""
    limits: WorkLimits


class Pipeline:
    """Works on the journal's open scenes between `start` and `stop`; starts once. Safe between threads."""

    def __init__(
        self,
        bundle: Bundle,
        journal: Journal,
        model: ModelSettings,
        triage: TriageSettings,
        governor: Governor | None = None,
        observe: Observe | None = None,
        *,
        open_session: Callable[[], Session] | None = None,
    ) -> None:
        """`observe` is told milliseconds of each stage: read, triage, anchors, vision, prefix, prefill, decode, tile
        (taken in, asked and placed), commit, question (of `submit`).

        `open_session` is called in each engine's thread; None: the bundle with its share of the processors. InputError
        where the anchor table does not fit the bundle.
        """
        self._governor = governor or NoLimits()
        observe = observe or (lambda stage, ms: None)
        workers, threads = engine_shares(bundle, model)
        table = _open_table(bundle, model)
        self._stopping = threading.Event()
        self._problem = ""
        self._ready = Ready(max(model.ready_tiles, model.vision_batch), lambda: self._governor.limits().paused)
        self._ledger = Ledger(journal, self._stopping)
        self._in_hand = InHand(journal.path.with_name("in-hand"), model.vision_batch)
        self._reader = Reader(
            bundle,
            self._ready,
            self._ledger,
            triage,
            self._governor,
            observe,
            self._stopping,
            self._lost,
            table,
            partial(self._in_hand.holding, 0),
        )
        self._engines = [
            Engine(
                f"engine {number}",
                open_session or (lambda: Session(bundle, threads)),
                self._ready,
                self._ledger,
                self._governor,
                observe,
                self._engine_lost,
                batch=model.vision_batch,
                table_sha256=self._reader.table_sha256,
                holding=partial(self._in_hand.holding, number),
            )
            for number in range(1, workers + 1)
        ]
        self._alive = workers
        self._counting = threading.Lock()

    def start(self) -> None:
        """Open the engines, then begin. EdgeError where one cannot be opened; nothing runs then.

        A scene that the service died with DEATHS times in a row goes to the dead letters before it can do so again.
        """
        self._judge_deaths()
        for engine in self._engines:
            engine.start()
        for engine in self._engines:
            engine.opened.wait()
        problem = next((engine.problem for engine in self._engines if engine.problem), None)
        if problem is not None:
            self.stop()
            raise problem
        self._reader.wake()
        self._reader.start()

    def stop(self, timeout_s: float = 30.0) -> None:
        """Finish the tiles in work and end; what was only read is read again after the next start."""
        self._stopping.set()
        self._ready.close()
        self._reader.wake()
        until = time.monotonic() + timeout_s
        for thread in (self._reader, *self._engines):
            if thread.ident is not None:
                thread.join(max(until - time.monotonic(), 0.0))
                if thread.is_alive():
                    log.warning("%s did not end within %g s", thread.name, timeout_s)
                    return
        self._in_hand.close()

    def wake(self) -> None:
        """Say that a scene was accepted, or queued again."""
        self._reader.wake()

    def submit(self, job: Callable[[Session], T]) -> Future[T]:
        """Run `job` on an engine before its next tile. BusyError where too many wait, or nothing may run.

        What the job raises goes to the future.
        """
        limits = self._governor.limits()
        if limits.paused:
            raise BusyError(f"paused ({limits.reason or 'by the governor'}); ask again later", 30.0)
        waiting = Job(job)
        self._ready.add_job(waiting)
        return waiting.future

    def status(self) -> PipelineStatus:
        alive = self._reader.is_alive() and self._alive > 0
        rate = self._ledger.tiles_per_s()
        working = [(ready.work.id, ready.tile.index) for engine in self._engines for ready in [*engine.working]]
        return PipelineStatus(
            running=alive and not self._stopping.is_set(),
            problem=self._problem,
            waits_for=self._ledger.waits_for,
            ready_tiles=len(self._ready),
            working=working,
            tiles_per_s=rate,
            eta_s=self._eta_s(rate),
            limits=self._governor.limits(),
        )

    def _judge_deaths(self) -> None:
        for scene_id in self._in_hand.open():
            row = self._ledger.patiently(partial(self._ledger.journal.note_death, scene_id))
            if row is None:
                continue
            log.warning("%s (%s) was in hand when the service died (%d of %d)", row.name, row.id, row.deaths, DEATHS)
            if row.deaths >= DEATHS:
                reason = (
                    f"the service died {row.deaths} times in a row while it was at this scene, after tile "
                    f"{row.tiles_done} of {row.tiles_total}: its log and the system's (memory?) may say why; retry it "
                    "when that has been mended"
                )
                self._ledger.fail(row, reason)

    def _eta_s(self, rate: float) -> float | None:
        works, waiting = [w for w in self._reader.works.values() if not w.closed], len(self._reader.waiting)
        left = sum(work.left for work in works)
        if not left and not waiting:
            return 0.0
        if not rate or not works:
            return None
        return (left + waiting * sum(len(work.windows) for work in works) / len(works)) / rate

    def _engine_lost(self, problem: str) -> None:
        with self._counting:
            self._alive -= 1
            last = self._alive == 0
        if last:
            self._lost(problem)

    def _lost(self, problem: str) -> None:
        """Nothing can go on: the scenes stay in the journal as they are."""
        self._problem = problem
        self._ready.close("the service has lost its engine" if self._alive == 0 else "the service cannot work on")
        self._reader.wake()


def engine_shares(bundle: Bundle, model: ModelSettings) -> tuple[int, int]:
    """Engines, and processor threads of each.

    A GPU runs one engine. On processors it is one for each, of one thread, as far as their graphs fit ENGINES_MIB: a
    decode step of a small model is too short to be shared. Default bundle, two cores, caption, count and detect, tiles
    per second (median of 7 runs): two engines of one thread 8.2, one of one thread 5.2, one of two threads 4.1, two of
    two threads 5.5. Vision in batches of 4 changes nothing on a processor.
    """
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if bundle.settings.engine == TENSORRT:
        return model.workers or 1, model.threads or processors
    mib = sum(bundle.file(name).stat().st_size for name in engine_files(bundle.settings.engine)) / 2**20
    workers = model.workers or min(processors, max(1, int(ENGINES_MIB / max(mib, 1.0))))
    return workers, model.threads or max(1, processors // workers)


def _open_table(bundle: Bundle, model: ModelSettings) -> AnchorTable | None:
    if model.anchors is None:
        return None
    from fusar_edge.anchors.table import AnchorTable

    table = AnchorTable.open(model.anchors)
    check_table(bundle, table)
    return table
