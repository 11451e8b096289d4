"""Carries the messages of one sink out of the journal."""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from dataclasses import dataclass

from fusar_edge.errors import BusyError, EdgeError
from fusar_edge.service.journal import Journal, Message
from fusar_edge.service.sinks.sink import Sink, SinkError

log = logging.getLogger(__name__)

BATCH = 64
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0
LONGEST_ASKED_WAIT_S = 600.0
"""A receiver may ask for this much patience at most."""
STUCK = 5
"""Failures in a row at the same message, after which the others go first."""
REFUSALS = 5
"""A message refused so often is dead."""
HELD_S = 60.0
"""Beyond a sink's `settle_s`, messages that it took are sent again by a service that was killed meanwhile."""
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


@dataclass(frozen=True)
class _Taken:
    """Messages that were taken and are not yet counted as delivered."""

    keys: list[str]
    line: object
    at: float
    """Seconds of the monotonic clock."""


class Courier(threading.Thread):
    """`start` it, and `stop` it before the journal is closed."""

    def __init__(self, journal: Journal, sink: Sink, *, first_wait_s: float = FIRST_WAIT_S) -> None:
        super().__init__(name=f"sink-{sink.name}", daemon=True)
        self._journal, self._sink, self._first_wait_s = journal, sink, first_wait_s
        self._stopping = threading.Event()
        self._bell = threading.Event()
        self._sent, self._failures, self._problem = 0, 0, ""
        self._stuck = ("", 0)
        """Key of the message at which the last batch failed, and how often in a row."""
        self._taken: list[_Taken] = []
        self._last_line: object = None
        """When `stop` came."""

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
            with contextlib.suppress(EdgeError):  # else they are sent again after the next start
                self._settle_taken(self._last_line, settle_s=0.0)
            self._sink.close()

    def stop(self, timeout_s: float = 15.0) -> None:
        """What was not delivered stays in the journal."""
        self._last_line = self._sink.line()
        self._stopping.set()
        self._bell.set()
        self._sink.interrupt()
        if self.is_alive():
            self.join(timeout_s)

    def _round(self) -> float:
        """Send what is due, or sleep until something comes. Returns how long to wait before the next round, s."""
        self._bell.clear()
        self._settle_taken(self._sink.line(), self._sink.settle_s)
        messages = self._journal.due(self._sink.name, BATCH, time.time())
        if not messages:
            first = self._journal.next_due(self._sink.name)
            wait_s = IDLE_S if first is None else first - time.time()
            if self._taken:
                wait_s = min(wait_s, self._taken[0].at + self._sink.settle_s - time.monotonic())
            self._bell.wait(min(max(wait_s, 0.01), IDLE_S))
            return 0.0
        try:
            self._sink.send(messages)
        except SinkError as error:
            self._settle(messages, error)
            # Where each message was taken or refused the receiver is well: the others need not wait.
            if len(error.sent) + len(error.refused) < len(messages):
                self._note_stuck(messages, error)
                return self._failed(str(error), error.retry_after_s)
        else:
            self._note_sent([message.key for message in messages])
        self._failures, self._problem = 0, ""
        return 0.0

    def _note_stuck(self, messages: list[Message], error: SinkError) -> None:
        """A receiver that fails at one message may take the others: it waits behind them then."""
        key = next(m.key for m in messages if m.key not in error.sent and m.key not in error.refused)
        times = self._stuck[1] + 1 if self._stuck[0] == key else 1
        self._stuck = (key, times)
        if times >= STUCK and len(messages) > 1:
            log.warning("sink %s: message %s failed %d times; the others go first", self._sink.name, key, times)
            self._journal.postpone(self._sink.name, key, time.time() + LONGEST_WAIT_S, str(error))
            self._stuck = ("", 0)

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

    def _settle_taken(self, line: object, settle_s: float) -> None:
        """What was taken long enough ago is delivered; what another line took is sent again."""
        now = time.monotonic()
        ripe = [taken for taken in self._taken if taken.line is line and now - taken.at >= settle_s]
        lost = [taken for taken in self._taken if taken.line is not line]
        if ripe:
            self._journal.delivered(self._sink.name, [key for taken in ripe for key in taken.keys])
        if lost:
            keys = [key for taken in lost for key in taken.keys]
            log.warning("sink %s: lost; what it took last (%d messages) is sent again", self._sink.name, len(keys))
            self._journal.hold(self._sink.name, keys, 0.0)
        self._taken = [taken for taken in self._taken if taken not in ripe and taken not in lost]

    def _note_sent(self, keys: list[str]) -> None:
        """Mark as taken; tries until the journal has room, as otherwise they would be sent again."""
        name, settle_s, line = self._sink.name, self._sink.settle_s, self._sink.line()
        if settle_s and line is None:
            return  # it was lost since: they stay due
        while keys:
            try:
                if settle_s:
                    self._journal.hold(name, keys, time.time() + settle_s + HELD_S)
                    self._taken.append(_Taken(keys, line, time.monotonic()))
                else:
                    self._journal.delivered(name, keys)
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
