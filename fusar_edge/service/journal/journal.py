"""The journal: everything that the parts of the service tell each other goes through it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusar_edge.service.journal.database import path_from_bytes
from fusar_edge.service.journal.events import now_or
from fusar_edge.service.journal.outbox import Kinds
from fusar_edge.service.journal.watched import Watched

DAY_S = 86_400.0


class Journal(Watched):
    """One SQLite file; safe between threads, and beside another process. Any call may raise BusyError."""

    @classmethod
    def open(cls, path: Path, sinks: Sequence[str] | Mapping[str, Kinds]) -> Journal:
        """Make or open the journal; `sinks`: who is told, or what kinds of messages each is told.

        A sink that is named for the first time hears of what comes from now on; messages for one that is not named any
        more are kept, are not counted, and go out when it is named again. EdgeError, naming the file, where it is
        damaged, of a newer version, or cannot be written.
        """
        return cls(Path(path), sinks)

    def counts(self) -> dict[str, Any]:
        """Scenes by status; tiles ever answered, and left out by reason; messages waiting and dead by sink; dead
        letters (failed scenes); files of the watch folder refused; events ever."""
        rows = self.read("SELECT status, count(*) AS n FROM scenes GROUP BY status")
        scenes = {"queued": 0, "running": 0, "done": 0, "failed": 0, **{row["status"]: row["n"] for row in rows}}
        totals = {row["name"]: row["value"] for row in self.read("SELECT * FROM totals")}
        tiles = {name[len("tiles.") :]: n for name, n in totals.items() if name.startswith("tiles.")}
        dead = self.read("SELECT sink, count(*) AS n FROM outbox WHERE dead = 1 GROUP BY sink")
        return {
            "scenes": scenes,
            "tiles": {"answered": 0, **tiles},
            "outbox": {name: self.outbox_count(name) for name in self.sinks},
            "dead_messages": {row["sink"]: row["n"] for row in dead},
            "dead_letters": scenes["failed"],
            "refused": totals.get("refused", 0),
            "events": self.last_event(),
        }

    def prune(self, keep_events: int, keep_done_days: float, now: float | None = None) -> list[str]:
        """Forget what is old: all but the newest events, scenes done so long ago that every sink has been told of, and
        watched files that are gone. Returns the ids of the scenes, whose files the caller removes. Failed ones stay."""
        since = now_or(now) - keep_done_days * DAY_S
        with self.write() as cursor:
            cursor.execute("DELETE FROM events WHERE id <= ?", (self.last_event() - keep_events,))
        rows = self.read(
            "SELECT id FROM scenes s WHERE status = 'done' AND finished_at < ? AND NOT EXISTS "
            "(SELECT 1 FROM messages m JOIN outbox o ON o.message = m.id WHERE m.scene = s.id)",
            (since,),
        )
        for row in rows:  # one transaction each: nobody waits long
            with self.write() as cursor:
                cursor.execute("DELETE FROM tiles WHERE scene = ?", (row["id"],))
                cursor.execute("DELETE FROM scenes WHERE id = ?", (row["id"],))
        self._forget_gone(since)
        return [row["id"] for row in rows]

    def _forget_gone(self, since: float) -> None:
        """A file whose folder is away too may only be unplugged."""
        rows = self.read("SELECT path FROM watched WHERE noted_at < ?", (since,))
        held = [(row["path"], path_from_bytes(row["path"])) for row in rows]
        gone = [(data,) for data, path in held if path.parent.is_dir() and not os.path.lexists(path)]
        if gone:
            with self.write() as cursor:
                cursor.executemany("DELETE FROM watched WHERE path = ?", gone)
