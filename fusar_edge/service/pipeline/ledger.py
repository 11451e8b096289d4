"""What the pipeline writes into the journal: outcomes of tiles, ends of scenes. Waits where the journal has no room."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from fusar_edge.errors import BusyError
from fusar_edge.runtime.geojson import Json
from fusar_edge.service.journal import Journal, Message, SceneRow, TileOutcome
from fusar_edge.service.pipeline.work import SceneWork
from fusar_edge.service.results import summary_from_journal

log = logging.getLogger(__name__)
T = TypeVar("T")

LONGEST_WAIT_S = 30.0
_FOLDERS = re.compile(r"(?<![\w./])/(?:[^\s/:'\"<>]+/)+")
RATE_S = 60.0
"""Span that the rate is measured over."""


class Stopped(Exception):
    """The service ends while the journal still has no room: what was not written is done again after the restart."""


class Ledger:
    """Safe between threads."""

    def __init__(self, journal: Journal, stopping: threading.Event) -> None:
        self.journal = journal
        self.waits_for = ""
        """Why nothing can be written just now."""
        self._stopping = stopping
        self._lock = threading.Lock()
        self._done_at: deque[float] = deque()
        self._began = time.monotonic()

    def tiles_done(self, work: SceneWork, outcomes: Sequence[TileOutcome]) -> None:
        """Keep outcomes, with a message about each tile that was answered; the last one finishes the scene."""
        messages = [_tile_message(work, outcome) for outcome in outcomes if outcome.status == "answered"]
        with self._lock:
            if work.closed:
                return
        self.patiently(lambda: self.journal.tiles_done(work.id, outcomes, messages))
        now = time.monotonic()
        with self._lock:
            work.left -= len(outcomes)
            self._done_at.extend([now] * len(outcomes))
        self.finish_if_done(work)

    def finish_if_done(self, work: SceneWork) -> None:
        """Finish a scene of which every tile has its outcome."""
        with self._lock:
            if work.left or work.closed:
                return
            work.closed = True
        row = self.patiently(lambda: self.journal.scene(work.id)) or work.row
        summary = self.patiently(lambda: summary_from_journal(self.journal, row))
        message = Message(key=work.id, kind="scene", scene_id=work.id, tile=None, payload=_json(summary))
        self.patiently(lambda: self.journal.finish(work.id, [message]))
        log.info("%s (%s): done, %d tiles", work.row.name, work.id, len(work.windows))

    def fail(self, row: SceneRow, reason: str, work: SceneWork | None = None) -> None:
        """Put a scene on the dead-letter list; the first reason counts."""
        if work is not None:
            with self._lock:
                if work.closed:
                    return
                work.closed = True
        # A scene that is retried may fail again, and that is news: the attempt is part of the key.
        key = f"{row.id}/failed/{row.attempts}"
        reason = public_text(reason, row)
        body = {"key": key, "scene": row.id, "name": row.name, "status": "failed", "reason": reason}
        message = Message(key=key, kind="failed", scene_id=row.id, tile=None, payload=_json(body))
        if self.patiently(lambda: self.journal.fail(row.id, reason, [message])):
            log.warning("%s (%s): failed: %s", row.name, row.id, reason)

    def patiently(self, write: Callable[[], T]) -> T:
        """`write`, again and again while the journal has no room; Stopped where the service ends meanwhile."""
        while True:
            try:
                written = write()
            except BusyError as busy:
                if not self.waits_for:
                    log.warning("the journal cannot be written, waiting: %s", busy)
                self.waits_for = str(busy)
                if self._stopping.wait(min(busy.retry_after_s, LONGEST_WAIT_S)):
                    raise Stopped from busy
            else:
                self.waits_for = ""
                return written

    def tiles_per_s(self) -> float:
        """Tiles with an outcome, over the last minute or since the start."""
        now = time.monotonic()
        with self._lock:
            while self._done_at and self._done_at[0] < now - RATE_S:
                self._done_at.popleft()
            return len(self._done_at) / max(min(RATE_S, now - self._began), 1.0)


def public_text(text: str, row: SceneRow) -> str:
    """Without the folders of this machine: a reason is read by clients."""
    for known in (str(Path(row.path).absolute()), str(row.path)):
        text = text.replace(known, row.name)
    return _FOLDERS.sub("", text)


def _tile_message(work: SceneWork, outcome: TileOutcome) -> Message:
    key = f"{work.id}/{outcome.index}"
    body: Json = {"key": key, "scene": work.id, "name": work.row.name, "tile": outcome.index}
    payload = _json({**body, "status": outcome.status, "features": outcome.features})
    return Message(key=key, kind="tile", scene_id=work.id, tile=outcome.index, payload=payload)


def _json(body: Json) -> bytes:
    return msgspec.json.encode(body)
