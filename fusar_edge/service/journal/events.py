"""What happened, in order."""

from __future__ import annotations

import sqlite3
import time
from typing import Any

import msgspec

from fusar_edge.service.journal.database import Database, held_integer, plain
from fusar_edge.service.journal.records import Event


class Events(Database):
    def events(self, after: int, scene_id: str | None = None, limit: int = 500) -> list[Event]:
        """Events with a greater id, oldest first."""
        after = held_integer(after)
        where, args = ("", [after]) if scene_id is None else (" AND scene = ?", [after, plain(scene_id)])
        rows = self.read(f"SELECT * FROM events WHERE id > ?{where} ORDER BY id LIMIT ?", [*args, limit])
        return [Event(r["id"], r["at"], r["scene"], r["kind"], msgspec.json.decode(r["data"])) for r in rows]

    def last_event(self) -> int:
        """Id of the newest event ever written, 0 before any."""
        rows = self.read("SELECT seq FROM sqlite_sequence WHERE name = 'events'")
        return rows[0]["seq"] if rows else 0

    def _note(self, cursor: sqlite3.Cursor, scene_id: str, kind: str, data: dict[str, Any], at: float) -> None:
        """Write an event in the transaction that is open; listeners hear of it after the commit."""
        text = msgspec.json.encode(data).decode()
        cursor.execute("INSERT INTO events (at, scene, kind, data) VALUES (?, ?, ?, ?)", (at, scene_id, kind, text))
        self._noted = True


def now_or(given: float | None) -> float:
    return time.time() if given is None else given
