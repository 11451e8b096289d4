"""Carries the messages of one sink out of the journal."""

from __future__ import annotations

import logging
import random
import threading
import time
from dataclasses import dataclass

from fusar_edge.errors import BusyError
from fusar_edge.service.journal import Journal, Message
from fusar_edge.service.sinks.sink import Sink, SinkError

log = logging.getLogger(__name__)

BATCH = 64
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0
LONGEST_ASKED_WAIT_S = 600.0
"""A receiver may ask for this much patience at most."""
REFUSALS = 5
"""A message refused so often is dead."""
IDLE_S = 30.0
"""The outbox is looked at this often even if nobody says that something has come."""


@dataclass(frozen=True)
class SinkStatus:
    name: str
    sent: int
    """Messages since the service was started."""
    failures: int
    """Batches in a row that were not taken; 0: all is well."""
    problem: str
    """Why the last one was not; no path, no secret."""


class Courier(threading.Thread):
    """`start` it, and `stop` it before the journal is closed."""

    def __init__(self, journal: Journal, sink: Sink, *, first_wait_s: float = FIRST_WAIT_S) -> None:
        super().__init__(name=f"sink-{sink.name}", daemon=True)
        self._journal, self._sink, self._first_wait_s = journal, sink, first_wait_s
        self._stopping = threading.Event()
        self._bell = threading.Event()
        self._sent, self._failures, self._problem = 0, 0, ""

    def status(self) -> SinkStatus:
        return SinkStatus(self._sink.name, self._sent, self._failures, self._problem)

    def wake(self) -> None:
        """Look at the outbox now."""
        self._bell.set()

    def run(self) -> None:
        unsubscribe = self._journal.on_event(self._bell.set)
        try:
            while not self._stopping.is_set():
                try:
                    wait_s = self._round()
                except BusyError as busy:  # the journal has no room: nothing was sent that it does not know of
                    wait_s = self._failed(str(busy), busy.retry_after_s)
                except Exception as error:  # a sink's bug must not end the deliveries for good
                    log.exception("sink %s", self._sink.name)
                    wait_s = self._failed(f"{type(error).__name__}: {error}", None)
                if wait_s:
                    self._stopping.wait(wait_s)
        finally:
            unsubscribe()
            self._sink.close()

    def stop(self, timeout_s: float = 15.0) -> None:
        """What was not delivered stays in the journal."""
        self._stopping.set()
        self._bell.set()
        self._sink.interrupt()
        if self.is_alive():
            self.join(timeout_s)

    def _round(self) -> float:
        """Send what is due, or sleep until something comes. Returns how long to wait before the next round, s."""
        self._bell.clear()
        messages = self._journal.due(self._sink.name, BATCH, time.time())
        if not messages:
            first = self._journal.next_due(self._sink.name)
            wait_s = IDLE_S if first is None else first - time.time()
            self._bell.wait(min(max(wait_s, 0.01), IDLE_S))
            return 0.0
        try:
            self._sink.send(messages)
        except SinkError as error:
            self._settle(messages, error)
            # Where each message was taken or refused the receiver is well: the others need not wait.
            if len(error.sent) + len(error.refused) < len(messages):
                return self._failed(str(error), error.retry_after_s)
        else:
            self._note_sent([message.key for message in messages])
        self._failures, self._problem = 0, ""
        return 0.0

    def _settle(self, messages: list[Message], error: SinkError) -> None:
        """Write down what became of each message of a batch that failed."""
        self._note_sent(list(error.sent))
        for message in messages:
            if (reason := error.refused.get(message.key)) is None:
                continue
            if message.attempts + 1 >= REFUSALS:
                log.error("sink %s: message %s is dead: %s", self._sink.name, message.key, reason)
                self._journal.bury(self._sink.name, message.key, reason)
            else:
                until = time.time() + self._wait_s(message.attempts + 1)
                self._journal.postpone(self._sink.name, message.key, until, reason)

    def _note_sent(self, keys: list[str]) -> None:
        """Mark as delivered; tries until the journal has room, as otherwise they would be sent again."""
        while keys:
            try:
                self._journal.delivered(self._sink.name, keys)
            except BusyError as busy:
                self._problem = str(busy)
                if self._stopping.wait(busy.retry_after_s):
                    raise
            else:
                self._sent += len(keys)
                return

    def _failed(self, problem: str, asked_s: float | None) -> float:
        """Note a failure; how long to wait after it, s."""
        self._failures += 1
        if problem != self._problem:
            log.warning("sink %s: %s", self._sink.name, problem)
        self._problem = problem
        wait_s = self._wait_s(self._failures)
        return wait_s if asked_s is None else max(wait_s, min(asked_s, LONGEST_ASKED_WAIT_S))

    def _wait_s(self, failures: int) -> float:
        """Twice as long after each failure, with jitter: many services must not come back at one moment."""
        longest = min(self._first_wait_s * 2.0 ** min(failures - 1, 16), LONGEST_WAIT_S)
        return longest * random.uniform(0.5, 1.0)
