"""What a sink is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from fusar_edge.errors import EdgeError
from fusar_edge.service.journal import Message
from fusar_edge.service.journal.outbox import Kinds


class SinkError(EdgeError):
    """Some messages of a batch were not taken.

    Those in `sent` were; those in `refused` (key -> reason) the receiver does not want, and a few more tries will show
    whether it means it; the others are sent again, as the receiver or the way to it is not well.
    """

    def __init__(
        self,
        message: str,
        *,
        sent: Sequence[str] = (),
        refused: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.sent, self.refused, self.retry_after_s = tuple(sent), dict(refused or {}), retry_after_s


class Sink(Protocol):
    @property
    def name(self) -> str:
        """As in the journal's outbox."""

    @property
    def kinds(self) -> Kinds:
        """What it is told of; for `Journal.open`."""

    @property
    def settle_s(self) -> float:
        """A message counts as delivered when it was taken, and no trouble came for so long after."""

    def line(self) -> object:
        """What messages go through now: another object, or None, after any trouble. Called by any thread."""

    def send(self, messages: Sequence[Message]) -> None:
        """Returns when every message was taken, else raises SinkError. Called by one thread."""

    def interrupt(self) -> None:
        """From another thread, for good: a `send` that waits ends with SinkError as soon as it can."""

    def close(self) -> None:
        """Let go of connections. Called by the thread that sends."""
