"""Tables of the journal, by `PRAGMA user_version`: the script at position v makes version v + 1 of version v."""

from __future__ import annotations

import sqlite3

FIRST = """
CREATE TABLE scenes (
    id TEXT PRIMARY KEY, path BLOB NOT NULL, name TEXT NOT NULL, sha256 TEXT NOT NULL, size_bytes INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL, source TEXT NOT NULL, owned INTEGER NOT NULL, tasks TEXT NOT NULL, label TEXT NOT NULL,
    bundle_sha256 TEXT NOT NULL, priority INTEGER NOT NULL, deadline REAL, submitted_as TEXT NOT NULL,
    acquired TEXT,
    status TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', attempts INTEGER NOT NULL DEFAULT 1,
    deaths INTEGER NOT NULL DEFAULT 0, deaths_at INTEGER NOT NULL DEFAULT 0,
    accepted_at REAL NOT NULL UNIQUE, started_at REAL, finished_at REAL, facts TEXT NOT NULL DEFAULT '{}',
    tiles_total INTEGER NOT NULL DEFAULT 0, tiles_done INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX scenes_by_status ON scenes (status, accepted_at);
CREATE TABLE tiles (
    scene TEXT NOT NULL REFERENCES scenes (id), tile INTEGER NOT NULL, outcome BLOB NOT NULL,
    PRIMARY KEY (scene, tile)
);
CREATE TABLE messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, scene TEXT NOT NULL,
    tile INTEGER, payload BLOB NOT NULL
);
CREATE TABLE outbox (
    sink TEXT NOT NULL, message INTEGER NOT NULL REFERENCES messages (id), dead INTEGER NOT NULL DEFAULT 0,
    not_before REAL NOT NULL DEFAULT 0, attempts INTEGER NOT NULL DEFAULT 0, reason TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (sink, dead, message)
) WITHOUT ROWID;
CREATE INDEX outbox_by_message ON outbox (message);
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, scene TEXT NOT NULL, kind TEXT NOT NULL, data TEXT NOT NULL
);
CREATE INDEX events_by_scene ON events (scene, id);
CREATE TABLE watched (
    path BLOB PRIMARY KEY, size_bytes INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, scene TEXT NOT NULL,
    refused_reason TEXT NOT NULL, noted_at REAL NOT NULL
);
CREATE TABLE totals (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""

SCRIPTS = (FIRST,)
VERSION = len(SCRIPTS)


def statements(script: str) -> list[str]:
    """The statements of a script: `executescript` would end the transaction that they are to stand in."""
    found, part = [], ""
    for piece in script.split(";"):
        part += piece + ";"
        if sqlite3.complete_statement(part):
            found.append(part.strip())
            part = ""
    if part.strip(" \n\t;"):
        found.append(part.strip())
    return [statement for statement in found if statement != ";"]
