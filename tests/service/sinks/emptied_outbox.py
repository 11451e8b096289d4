"""Waiting until a sink has taken everything."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from fusar_edge.service.journal import Journal

PATIENCE_S = 15.0


class Emptied:
    """`delivered` writes no event, so that it is wrapped."""

    def __init__(self, journal: Journal, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._bell, deliver = threading.Event(), journal.delivered

        def delivered(sink: str, keys: Sequence[str]) -> None:
            deliver(sink, keys)
            if sink == name and journal.outbox_count(name) == 0:
                self._bell.set()

        monkeypatch.setattr(journal, "delivered", delivered)

    def clear(self) -> None:
        self._bell.clear()

    def wait(self) -> None:
        assert self._bell.wait(PATIENCE_S)
