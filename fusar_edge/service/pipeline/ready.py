"""What waits for an engine: tiles that are read, most urgent first, and interactive questions before all of them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from fusar_edge.errors import BusyError
from fusar_edge.runtime.session import Session
from fusar_edge.runtime.tile import Tile
from fusar_edge.service.pipeline.work import Rank, SceneWork

MOST_JOBS = 8
"""Interactive questions that may wait."""
RETRY_S = 10.0
PAUSE_POLL_S = 0.25
"""Nobody says when a pause ends: the governor is asked."""


@dataclass
class Job:
    """A question that somebody waits for."""

    run: Callable[[Session], Any]
    future: Future[Any] = field(default_factory=Future)


@dataclass(frozen=True, eq=False)
class ReadyTile:
    work: SceneWork
    tile: Tile
    triage: dict[str, Any]
    """What the journal keeps of the verdict."""

    @property
    def rank(self) -> tuple[Any, ...]:
        return (*self.work.rank, self.tile.index)


class Ready:
    """Holds at most `capacity` tiles: those that wait, and those that an engine has taken. Safe between threads."""

    def __init__(self, capacity: int, paused: Callable[[], bool]) -> None:
        self._capacity, self._paused = capacity, paused
        self._tiles: list[ReadyTile] = []
        self._jobs: deque[Job] = deque()
        self._taken: set[ReadyTile] = set()
        self._changed = threading.Condition()
        self._closed = ""
        """Why nothing is taken any more."""

    def __len__(self) -> int:
        return len(self._tiles)

    @property
    def closed(self) -> bool:
        return bool(self._closed)

    def has_room(self, rank: Rank) -> bool:
        """Whether a tile of a scene of this rank may come: there is room, or a less urgent tile that gives way."""
        with self._changed:
            full = len(self._tiles) + len(self._taken) >= self._capacity
            return not full or any(ready.work.rank > rank for ready in self._tiles)

    def wait_for_room(self, rank: Rank, news: threading.Event) -> bool:
        """Before a tile is read, so that no more than `capacity` exist. False when closed, or nudged with news."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or news.is_set() or self.has_room(rank))
            return not self._closed and not news.is_set()

    def nudge(self) -> None:
        """Who waits for room looks for news."""
        with self._changed:
            self._changed.notify_all()

    def put(self, tile: ReadyTile) -> ReadyTile | None:
        """Add a tile. Where that is one too many, the least urgent one is given back, to be read again later."""
        with self._changed:
            self._tiles.append(tile)
            self._changed.notify_all()
            if len(self._tiles) + len(self._taken) <= self._capacity:
                return None
            last = max(self._tiles, key=lambda ready: ready.rank)
            self._tiles.remove(last)
            return last

    def put_back(self, tiles: Sequence[ReadyTile]) -> None:
        """Those of the tiles that are still taken wait again: for their questions, or for another engine."""
        with self._changed:
            self._tiles += [tile for tile in tiles if tile in self._taken]
            self._taken.difference_update(tiles)
            self._changed.notify_all()

    def release(self, tiles: Sequence[ReadyTile]) -> None:
        """Those of the tiles that are still taken are done with."""
        with self._changed:
            self._taken.difference_update(tiles)
            self._changed.notify_all()

    def add_job(self, job: Job) -> None:
        """BusyError where MOST_JOBS wait already, or nobody takes any."""
        with self._changed:
            if self._closed:
                raise BusyError(f"{self._closed}; ask again later", RETRY_S)
            if len(self._jobs) >= MOST_JOBS:
                raise BusyError(f"{MOST_JOBS} questions wait already; ask again in a few seconds", 5.0)
            self._jobs.append(job)
            self._changed.notify_all()

    def take(self, most: int) -> Job | list[ReadyTile] | None:
        """Waits for work: a job; or the most urgent tile, alone when it was seen, else with up to `most` to see.

        None when closed. What is taken is put back or released.
        """
        with self._changed:
            while not self._closed:
                if self._jobs:
                    return self._jobs.popleft()
                self._drop_closed()
                if self._tiles and not self._paused():
                    return self._most_urgent(most)
                self._changed.wait(PAUSE_POLL_S if self._tiles else None)
            return None

    def close(self, problem: str = "the service is stopping") -> None:
        """Nobody waits any more; questions that do get BusyError."""
        with self._changed:
            self._closed = problem
            jobs, self._jobs, self._tiles = list(self._jobs), deque(), []
            self._changed.notify_all()
        for job in jobs:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(BusyError(f"{problem}; ask again later", RETRY_S))

    def _drop_closed(self) -> None:
        """Tiles of scenes that have failed meanwhile."""
        kept = [tile for tile in self._tiles if not tile.work.closed]
        if len(kept) < len(self._tiles):
            self._tiles = kept
            self._changed.notify_all()

    def _most_urgent(self, most: int) -> list[ReadyTile]:
        ranked = sorted(self._tiles, key=lambda ready: ready.rank)
        if ranked[0].tile.visual is not None:
            taken = ranked[:1]
        else:
            taken = [ready for ready in ranked if ready.tile.visual is None][:most]
        self._tiles = [ready for ready in self._tiles if ready not in taken]
        self._taken.update(taken)
        return taken
