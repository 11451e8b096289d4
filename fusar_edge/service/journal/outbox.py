"""Messages on their way to sinks. A message is written in the transaction of what it tells, and leaves the outbox when
its sink has taken it: none is lost, and none is written twice."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fusar_edge.service.journal.events import Events
from fusar_edge.service.journal.records import Message, MessageKind

Kinds = Collection[MessageKind]
ALL_KINDS: Kinds = frozenset(("tile", "scene", "failed"))


@dataclass(frozen=True)
class DeadMessage:
    """A message that its sink will not take."""

    sink: str
    key: str
    attempts: int
    reason: str


class Outbox(Events):
    def __init__(self, path: Path, sinks: Sequence[str] | Mapping[str, Kinds]) -> None:
        super().__init__(path)
        self.sinks: dict[str, Kinds] = dict(sinks) if isinstance(sinks, Mapping) else dict.fromkeys(sinks, ALL_KINDS)
        """What each sink is told of."""

    def due(self, sink: str, limit: int, now: float) -> list[Message]:
        """Messages for `sink` that are not postponed beyond `now` (Unix seconds), oldest first."""
        rows = self.read(
            "SELECT m.*, o.attempts FROM outbox o JOIN messages m ON m.id = o.message "
            "WHERE o.sink = ? AND o.dead = 0 AND o.not_before <= ? ORDER BY o.message LIMIT ?",
            (sink, now, limit),
        )
        return [Message(r["key"], r["kind"], r["scene"], r["tile"], r["payload"], r["attempts"]) for r in rows]

    def next_due(self, sink: str) -> float | None:
        """When the first message for `sink` may be sent, Unix seconds; 0 for at once, None where there is none."""
        rows = self.read("SELECT min(not_before) AS first FROM outbox WHERE sink = ? AND dead = 0", (sink,))
        first: float | None = rows[0]["first"]
        return first

    def delivered(self, sink: str, keys: Iterable[str]) -> None:
        """The sink has taken them: never again."""
        with self.write() as cursor:
            for key in keys:
                row = cursor.execute("SELECT id FROM messages WHERE key = ?", (key,)).fetchone()
                if row is None:
                    continue
                cursor.execute("DELETE FROM outbox WHERE sink = ? AND message = ?", (sink, row["id"]))
                _drop_told(cursor, row["id"])

    def hold(self, sink: str, keys: Iterable[str], until: float) -> None:
        """The sink has taken them, perhaps not for good: not before `until` (Unix seconds) again."""
        with self.write() as cursor:
            cursor.executemany(
                "UPDATE outbox SET not_before = ? WHERE sink = ? AND dead = 0 "
                "AND message = (SELECT id FROM messages WHERE key = ?)",
                [(until, sink, key) for key in keys],
            )

    def postpone(self, sink: str, key: str, until: float, reason: str) -> None:
        """The sink refused this message: not before `until` (Unix seconds) again."""
        with self.write() as cursor:
            cursor.execute(
                "UPDATE outbox SET not_before = ?, reason = ?, attempts = attempts + 1 "
                "WHERE sink = ? AND dead = 0 AND message = (SELECT id FROM messages WHERE key = ?)",
                (until, reason, sink, key),
            )

    def bury(self, sink: str, key: str, reason: str) -> None:
        """The sink will never take this message: it is kept, and not sent until `revive`."""
        with self.write() as cursor:
            cursor.execute(
                "UPDATE outbox SET dead = 1, reason = ?, attempts = attempts + 1 "
                "WHERE sink = ? AND dead = 0 AND message = (SELECT id FROM messages WHERE key = ?)",
                (reason, sink, key),
            )

    def dead_messages(self, limit: int = 100) -> list[DeadMessage]:
        rows = self.read(
            "SELECT o.sink, m.key, o.attempts, o.reason FROM outbox o JOIN messages m ON m.id = o.message "
            "WHERE o.dead = 1 ORDER BY o.message, o.sink LIMIT ?",
            (limit,),
        )
        return [DeadMessage(r["sink"], r["key"], r["attempts"], r["reason"]) for r in rows]

    def revive(self, sink: str) -> int:
        """Send the dead messages of a sink again; how many there were."""
        with self.write() as cursor:
            cursor.execute(
                "UPDATE outbox SET dead = 0, not_before = 0, attempts = 0 WHERE sink = ? AND dead = 1", (sink,)
            )
            return cursor.rowcount

    def outbox_count(self, sink: str | None = None) -> int:
        """Messages that wait; None: of all sinks that there are now."""
        names = list(self.sinks) if sink is None else [sink]
        return sum(
            self.read("SELECT count(*) AS n FROM outbox WHERE sink = ? AND dead = 0", (name,))[0]["n"] for name in names
        )

    def _post(self, cursor: sqlite3.Cursor, messages: Sequence[Message]) -> None:
        """Put messages into the outbox of each sink that is told of their kind; one whose key waits already is left."""
        for message in messages:
            takers = [name for name, kinds in self.sinks.items() if message.kind in kinds]
            if not takers:
                continue
            cursor.execute(
                "INSERT INTO messages (key, kind, scene, tile, payload) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (message.key, message.kind, message.scene_id, message.tile, message.payload),
            )
            if cursor.rowcount:
                number = cursor.lastrowid
                cursor.executemany(
                    "INSERT INTO outbox (sink, message) VALUES (?, ?)", [(name, number) for name in takers]
                )


def _drop_told(cursor: sqlite3.Cursor, message: int) -> None:
    """Drop the text of a message that every sink has taken."""
    if cursor.execute("SELECT 1 FROM outbox WHERE message = ? LIMIT 1", (message,)).fetchone() is None:
        cursor.execute("DELETE FROM messages WHERE id = ?", (message,))
