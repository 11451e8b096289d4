"""Scenes: queued -> running -> done or failed; failed -> queued by `retry`."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

import msgspec

from fusar_edge.errors import EdgeError, InputError
from fusar_edge.service.journal.database import bytes_from_path, path_from_bytes, plain
from fusar_edge.service.journal.events import now_or
from fusar_edge.service.journal.outbox import Outbox
from fusar_edge.service.journal.records import PRIORITIES, Message, NewScene, SceneRow, Status

_URGENCY = "priority DESC, deadline IS NULL, deadline, accepted_at"
_TICK_S = 1e-6


class Scenes(Outbox):
    def accept(self, new: NewScene, now: float | None = None) -> tuple[SceneRow, bool]:
        """Queue a scene; False where it is known already, in whatever state: then nothing is written.

        InputError: a priority beyond -100..100.
        """
        if new.priority not in PRIORITIES:
            raise InputError(f"priority {new.priority}: allowed are -100 to 100, higher first")
        if known := self.scene(new.id):
            return known, False
        with self.write() as cursor:
            fields = {
                **_columns(new),
                "id": new.id,
                "status": "queued",
                "accepted_at": _free_moment(cursor, now_or(now)),
            }
            names, marks = ", ".join(fields), ", ".join(f":{name}" for name in fields)
            cursor.execute(f"INSERT INTO scenes ({names}) VALUES ({marks}) ON CONFLICT (id) DO NOTHING", fields)
            fresh = cursor.rowcount == 1
            row = _held(cursor, new.id)
            if fresh:
                self._note_scene(cursor, row, "scene.accepted", row.accepted_at)
        return row, fresh

    def scene(self, scene_id: str) -> SceneRow | None:
        rows = self.read("SELECT * FROM scenes WHERE id = ?", (plain(scene_id),))
        return _row(rows[0]) if rows else None

    def scenes(self, status: Status | None = None, limit: int = 100, before: float | None = None) -> list[SceneRow]:
        """Newest first; `before`: the `accepted_at` of the last one of the page before."""
        tests, args = ["1"], list[Any]()
        if status is not None:
            tests, args = [*tests, "status = ?"], [*args, status]
        if before is not None:
            tests, args = [*tests, "accepted_at < ?"], [*args, before]
        where = " AND ".join(tests)
        rows = self.read(f"SELECT * FROM scenes WHERE {where} ORDER BY accepted_at DESC LIMIT ?", [*args, limit])
        return [_row(row) for row in rows]

    def open_scenes(self) -> list[SceneRow]:
        """Queued and running, most urgent first: priority, then deadline, then who came first."""
        rows = self.read(f"SELECT * FROM scenes WHERE status IN ('queued', 'running') ORDER BY {_URGENCY}")
        return [_row(row) for row in rows]

    def start(self, scene_id: str, facts: dict[str, Any], tiles_total: int, now: float | None = None) -> dict[str, Any]:
        """Running, now or again after a restart. Returns the facts in force: those of the first start.

        They and `tiles_total` are kept for good, so that a resumed scene has the tiles that it had. InputError where
        the scene is not open.
        """
        at = now_or(now)
        with self.write() as cursor:
            row = _held(cursor, scene_id)
            if row.status not in ("queued", "running"):
                raise InputError(f"scene {scene_id} is {row.status}: only an open one can start")
            if row.started_at is not None:
                facts, tiles_total = row.facts, row.tiles_total
            if row.status == "queued":
                cursor.execute(
                    "UPDATE scenes SET status = 'running', facts = ?, tiles_total = ?, "
                    "started_at = coalesce(started_at, ?) WHERE id = ?",
                    (msgspec.json.encode(facts).decode(), tiles_total, at, scene_id),
                )
                self._note_scene(cursor, _held(cursor, scene_id), "scene.started", at)
        return facts

    def finish(self, scene_id: str, messages: Sequence[Message], now: float | None = None) -> bool:
        """Done: every tile has an outcome (EdgeError otherwise). False where it was done already: no message then."""
        at = now_or(now)
        with self.write() as cursor:
            row = _held(cursor, scene_id)
            if row.status == "done":
                return False
            if row.status != "running" or row.tiles_done != row.tiles_total:
                raise EdgeError(
                    f"scene {scene_id} is {row.status}, {row.tiles_done} of {row.tiles_total} tiles: it cannot be done"
                )
            self._end(cursor, scene_id, "done", "", at, messages)
        return True

    def fail(self, scene_id: str, reason: str, messages: Sequence[Message], now: float | None = None) -> bool:
        """To the dead letters, with the reason; its tiles are kept. False where it had ended already."""
        at = now_or(now)
        with self.write() as cursor:
            if _held(cursor, scene_id).status not in ("queued", "running"):
                return False
            self._end(cursor, scene_id, "failed", plain(reason), at, messages)
        return True

    def retry(self, scene_id: str, now: float | None = None, file: NewScene | None = None) -> SceneRow:
        """Queue a failed scene again: it goes on at the first tile without an outcome. InputError: not a failed one.

        `file`: the same bytes in another place, since they were sent again.
        """
        with self.write() as cursor:
            row = _held(cursor, scene_id)
            if row.status != "failed":
                raise InputError(f"scene {scene_id} is {row.status}: only a failed one can be tried again")
            cursor.execute(
                "UPDATE scenes SET status = 'queued', reason = '', finished_at = NULL, attempts = attempts + 1, "
                "deaths = 0 WHERE id = ?",
                (scene_id,),
            )
            if file is not None:
                cursor.execute(
                    "UPDATE scenes SET path = ?, mtime_ns = ?, owned = ? WHERE id = ?",
                    (bytes_from_path(file.path), file.mtime_ns, int(file.owned), scene_id),
                )
            row = _held(cursor, scene_id)
            self._note_scene(cursor, row, "scene.retried", now_or(now))
        return row

    def note_death(self, scene_id: str) -> SceneRow | None:
        """The service died with this scene in hand. None where it is not open any more."""
        with self.write() as cursor:
            cursor.execute(
                "UPDATE scenes SET deaths = CASE deaths_at WHEN tiles_done THEN deaths + 1 ELSE 1 END, "
                "deaths_at = tiles_done WHERE id = ? AND status IN ('queued', 'running')",
                (scene_id,),
            )
            return _held(cursor, scene_id) if cursor.rowcount else None

    def _end(
        self, cursor: sqlite3.Cursor, scene_id: str, status: Status, reason: str, at: float, messages: Sequence[Message]
    ) -> None:
        cursor.execute(
            "UPDATE scenes SET status = ?, reason = ?, finished_at = ? WHERE id = ?", (status, reason, at, scene_id)
        )
        self._post(cursor, messages)
        self._note_scene(cursor, _held(cursor, scene_id), f"scene.{status}", at)

    def _note_scene(self, cursor: sqlite3.Cursor, row: SceneRow, kind: str, at: float) -> None:
        names = ("name", "status", "reason", "attempts", "priority", "tiles_total", "tiles_done")
        self._note(cursor, row.id, kind, {name: getattr(row, name) for name in names}, at)


def _held(cursor: sqlite3.Cursor, scene_id: str) -> SceneRow:
    row = cursor.execute("SELECT * FROM scenes WHERE id = ?", (scene_id,)).fetchone()
    if row is None:
        raise InputError(f"scene {scene_id} is not in the journal: give the id of an accepted one")
    return _row(row)


def _columns(new: NewScene) -> dict[str, Any]:
    return {
        "path": bytes_from_path(new.path),
        "name": plain(new.name),
        "sha256": new.sha256,
        "size_bytes": new.size_bytes,
        "mtime_ns": new.mtime_ns,
        "source": new.source,
        "owned": int(new.owned),
        "tasks": msgspec.json.encode(new.tasks).decode(),
        "label": new.label,
        "bundle_sha256": new.bundle_sha256,
        "priority": new.priority,
        "deadline": new.deadline,
        "submitted_as": plain(new.submitted_as),
        "acquired": new.acquired,
    }


def _row(row: sqlite3.Row) -> SceneRow:
    fields = {name: row[name] for name in row.keys()}  # noqa: SIM118 (a Row iterates over its values)
    fields["path"] = path_from_bytes(row["path"])
    fields["owned"] = bool(row["owned"])
    fields["tasks"] = tuple(msgspec.json.decode(row["tasks"]))
    fields["facts"] = msgspec.json.decode(row["facts"])
    return SceneRow(**fields)


def _free_moment(cursor: sqlite3.Cursor, at: float) -> float:
    """`at`, or the next microsecond that no scene was accepted in: pages of scenes are cut at these times."""
    while cursor.execute("SELECT 1 FROM scenes WHERE accepted_at = ?", (at,)).fetchone():
        at += _TICK_S
    return at
