"""Files of the watch folder that were seen: a restart hashes none of them again."""

from __future__ import annotations

from pathlib import Path

from fusar_edge.service.journal.database import bytes_from_path, plain
from fusar_edge.service.journal.events import now_or
from fusar_edge.service.journal.tiles import Tiles


class Watched(Tiles):
    def watched(self, path: Path, size: int, mtime_ns: int) -> str | None:
        """Id of the scene that this file became, "" where it was refused, None where it is new or has changed."""
        rows = self.read(
            "SELECT scene FROM watched WHERE path = ? AND size_bytes = ? AND mtime_ns = ?",
            (bytes_from_path(path), size, mtime_ns),
        )
        return rows[0]["scene"] if rows else None

    def note_watched(
        self,
        path: Path,
        size: int,
        mtime_ns: int,
        scene_id: str,
        refused_reason: str = "",
        now: float | None = None,
    ) -> None:
        """Remember a file as it is now; a refused one (scene_id "") also becomes an event."""
        at, reason = now_or(now), plain(refused_reason)
        with self.write() as cursor:
            cursor.execute(
                "INSERT OR REPLACE INTO watched VALUES (?, ?, ?, ?, ?, ?)",
                (bytes_from_path(path), size, mtime_ns, scene_id, reason, at),
            )
            if not scene_id:
                cursor.execute(
                    "INSERT INTO totals VALUES ('refused', 1) ON CONFLICT (name) DO UPDATE SET value = value + 1"
                )
                self._note(cursor, "", "scene.refused", {"name": plain(path.name), "reason": reason}, at)
