"""What waits for the downlink: the journal's records, taken over once, until the ground has acknowledged them.

    downlink_scenes    head of each scene, and how far its journal was read
    downlink_records   one row for each record; `sent_at` of the last packet that held it; `acked` for good
    downlink_packets   sequence, CRC, and the records of each packet

When all of a finished scene is acknowledged its rows are deleted and the scene is `closed`: nothing of it waits again.
"""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from fusar_edge.service.onboard.choice import Candidate
from fusar_edge.service.onboard.dictionary import DICTIONARY
from fusar_edge.service.onboard.packet import encode_body
from fusar_edge.service.onboard.records import Kind, Record, SceneHead, head_from_row, records_from_outcomes, worth

if TYPE_CHECKING:
    from fusar_edge.service.journal import Journal, SceneRow

PAGE = 500
BYTES = {Kind.scene: 0.3, Kind.detection: 7.0, Kind.classify: 7.0, Kind.count: 2.5, Kind.grid: 3.0, Kind.caption: 3.0}
"""Of a record without its text, measured on simulated scenes; only the order of choice hangs on it."""

TABLES = """
CREATE TABLE IF NOT EXISTS downlink_scenes (
    scene_id TEXT PRIMARY KEY, seen TEXT NOT NULL, head BLOB NOT NULL, closed INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS downlink_records (
    id INTEGER PRIMARY KEY AUTOINCREMENT, scene_id TEXT NOT NULL, key TEXT NOT NULL, record BLOB NOT NULL,
    sent_at REAL NOT NULL DEFAULT 0, acked INTEGER NOT NULL DEFAULT 0, UNIQUE (scene_id, key)
);
CREATE INDEX IF NOT EXISTS downlink_waiting ON downlink_records (sent_at) WHERE acked = 0;
CREATE TABLE IF NOT EXISTS downlink_packets (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, crc INTEGER NOT NULL, made_at REAL NOT NULL, bytes INTEGER NOT NULL,
    records BLOB NOT NULL, acked_at REAL
);
"""


@dataclass(frozen=True)
class Backlog:
    """What may go now."""

    heads: dict[str, SceneHead]
    """By scene."""
    records: dict[int, Record]
    """By row."""
    candidates: list[Candidate]

    def body(self, some: Sequence[Candidate]) -> bytes:
        """These candidates, packed."""
        groups: defaultdict[str, list[Record]] = defaultdict(list)
        for candidate in some:
            groups[candidate.scene].append(self.records[candidate.id])
        return encode_body([(self.heads[scene], records) for scene, records in groups.items()])


def gather(journal: Journal) -> None:
    """Take what the journal has that the queue does not."""
    journal.add_tables(TABLES)
    known = {row[0]: (row[1], row[2]) for row in journal.read("SELECT scene_id, seen, closed FROM downlink_scenes")}
    for row in _begun(journal):
        seen, closed = known.get(row.id, ("", 0))
        now_seen = f"{row.status}/{row.attempts}/{row.tiles_done}"
        if closed or seen == now_seen:
            continue
        outcomes = list(journal.tiles(row.id))
        found = records_from_outcomes(row, outcomes)
        head = msgspec.msgpack.encode(head_from_row(row, outcomes))
        summaries = [key for key in found if key.startswith("scene/")]
        with journal.write() as cursor:
            cursor.execute(
                "INSERT INTO downlink_scenes (scene_id, seen, head) VALUES (?, ?, ?) "
                "ON CONFLICT (scene_id) DO UPDATE SET seen = excluded.seen, head = excluded.head",
                (row.id, now_seen, head),
            )
            cursor.executemany(
                "INSERT OR IGNORE INTO downlink_records (scene_id, key, record) VALUES (?, ?, ?)",
                [(row.id, key, msgspec.msgpack.encode(record)) for key, record in found.items()],
            )
            # A scene that failed and was done at the next attempt has one summary that counts.
            cursor.execute(
                "UPDATE downlink_records SET acked = 1 WHERE scene_id = ? AND key LIKE 'scene/%' AND key NOT IN (?)",
                (row.id, *(summaries or [""])),
            )


def _begun(journal: Journal) -> list[SceneRow]:
    """Scenes that were begun at any time, newest first."""
    found: list[SceneRow] = []
    page = journal.scenes(limit=PAGE)
    while page:
        found += [row for row in page if row.facts]
        page = journal.scenes(limit=PAGE, before=page[-1].accepted_at) if len(page) == PAGE else []
    return found


def backlog(journal: Journal, now: float, sent_before: float) -> Backlog:
    """Records without a receipt that were never sent, or not after `sent_before` (Unix seconds)."""
    query = "SELECT id, scene_id, record FROM downlink_records WHERE acked = 0 AND sent_at <= ?"
    rows = journal.read(query, (sent_before,))
    decode_head, decode_record = msgspec.msgpack.Decoder(SceneHead).decode, msgspec.msgpack.Decoder(Record).decode
    open_heads = journal.read("SELECT scene_id, head FROM downlink_scenes WHERE closed = 0")
    heads = {row[0]: decode_head(row[1]) for row in open_heads}
    records = {row[0]: decode_record(row[2]) for row in rows}
    texts = Counter(record.text for record in records.values())
    text_bytes = {text: _deflated(text) / count for text, count in texts.items()}
    candidates = [
        Candidate(row[0], row[1], worth(record, heads[row[1]], now), BYTES[record.kind] + text_bytes[record.text])
        for row, record in zip(rows, records.values(), strict=True)
    ]
    return Backlog(heads, records, candidates)


def close_scenes(cursor: Any) -> None:
    """Forget the records of finished scenes of which all are acknowledged."""
    cursor.execute(
        "UPDATE downlink_scenes SET closed = 1, head = x'' WHERE closed = 0 AND seen LIKE 'done/%' AND NOT EXISTS "
        "(SELECT 1 FROM downlink_records r WHERE r.scene_id = downlink_scenes.scene_id AND r.acked = 0)"
    )
    cursor.execute(
        "DELETE FROM downlink_records WHERE scene_id IN (SELECT scene_id FROM downlink_scenes WHERE closed = 1)"
    )


def _deflated(text: str) -> int:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=DICTIONARY)
    return len(packer.compress(text.encode()) + packer.flush())
