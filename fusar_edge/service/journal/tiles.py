"""Outcomes of tiles: each is written once, together with the messages that tell of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from fusar_edge.errors import InputError
from fusar_edge.service.journal.database import held_integer
from fusar_edge.service.journal.events import now_or
from fusar_edge.service.journal.records import Message, TileOutcome
from fusar_edge.service.journal.scenes import Scenes

_PAGE = 200
_decoder = msgspec.json.Decoder(TileOutcome)


class Tiles(Scenes):
    def tile_done(
        self, scene_id: str, outcome: TileOutcome, messages: Sequence[Message] = (), now: float | None = None
    ) -> bool:
        """Keep a tile's outcome and post its messages, in one transaction. False where the tile has one already: then
        nothing is written, and nobody is told again. InputError: an unknown scene, or a tile beyond its plan."""
        return self.tiles_done(scene_id, [outcome], messages, now) == 1

    def tiles_done(
        self, scene_id: str, outcomes: Sequence[TileOutcome], messages: Sequence[Message] = (), now: float | None = None
    ) -> int:
        """`tile_done` of several tiles in one transaction: one write to the disk. Returns how many were new; messages
        of tiles that were not are left out."""
        at = now_or(now)
        with self.write() as cursor:
            row = cursor.execute("SELECT tiles_total, tiles_done FROM scenes WHERE id = ?", (scene_id,)).fetchone()
            total, done = (row["tiles_total"], row["tiles_done"]) if row else (0, 0)
            fresh = set[int]()
            for outcome in outcomes:
                if not 0 <= outcome.index < total:
                    raise InputError(
                        f"tile {outcome.index} of scene {scene_id}: it has {total} tiles that were started"
                    )
                if self._keep(cursor, scene_id, outcome):
                    fresh.add(outcome.index)
                    self._note(cursor, scene_id, "tile.done", _told(outcome, done + len(fresh), total), at)
            if not fresh:
                return 0
            cursor.execute("UPDATE scenes SET tiles_done = tiles_done + ? WHERE id = ?", (len(fresh), scene_id))
            self._post(cursor, [m for m in messages if m.tile is None or m.tile in fresh])
        return len(fresh)

    def done_tiles(self, scene_id: str) -> set[int]:
        rows = self.read("SELECT tile FROM tiles WHERE scene = ?", (scene_id,))
        return {row["tile"] for row in rows}

    def tiles(self, scene_id: str, after: int = -1, limit: int | None = None) -> Iterator[TileOutcome]:
        """Outcomes by index, those beyond `after`. Read in pages: no reader holds the log file for long."""
        after, left = held_integer(after), limit
        while left is None or left > 0:
            page = _PAGE if left is None else min(left, _PAGE)
            rows = self.read(
                "SELECT tile, outcome FROM tiles WHERE scene = ? AND tile > ? ORDER BY tile LIMIT ?",
                (scene_id, after, page),
            )
            yield from (_decoder.decode(row["outcome"]) for row in rows)
            if len(rows) < page:
                return
            after = rows[-1]["tile"]
            left = None if left is None else left - page

    def _keep(self, cursor: sqlite3.Cursor, scene_id: str, outcome: TileOutcome) -> bool:
        cursor.execute(
            "INSERT INTO tiles (scene, tile, outcome) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
            (scene_id, outcome.index, msgspec.json.encode(outcome)),
        )
        if not cursor.rowcount:
            return False
        name = "answered" if outcome.status == "answered" else outcome.reason or "skipped"
        cursor.execute(
            "INSERT INTO totals VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET value = value + 1", (f"tiles.{name}",)
        )
        return True


def _told(outcome: TileOutcome, done: int, total: int) -> dict[str, Any]:
    """What the event says: enough to light a tile up; the rest is asked for."""
    properties = [feature.get("properties", {}) for feature in outcome.features]
    return {
        "tile": outcome.index,
        "status": outcome.status,
        "reason": outcome.reason,
        "answers": [{"task": p.get("task"), "text": p.get("text")} for p in properties],
        "detections": len(outcome.detections),
        "tiles_done": done,
        "tiles_total": total,
    }
