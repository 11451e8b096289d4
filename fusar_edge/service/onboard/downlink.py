"""The downlink: the packet of the most worth within a budget of bytes, and the receipts of those that arrived.

A record is sent again when no receipt came within `resend_after_s`, and never after one did; a receipt that comes
late counts too.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from fusar_edge.errors import BusyError, InputError
from fusar_edge.service.onboard.backlog import TABLES, Backlog, backlog, close_scenes, gather
from fusar_edge.service.onboard.choice import Candidate, chosen
from fusar_edge.service.onboard.packet import receipt, sealed

if TYPE_CHECKING:
    from fusar_edge.service.journal import Journal

RESEND_AFTER_S = 6 * 3600.0
PACKETS_KEPT = 1000
"""Receipts of older ones are refused."""
HEAD_BYTES = 45.0
"""A scene's head, about."""
UNITS = {"": 1, "B": 1, "KB": 1000, "MB": 1000**2, "KIB": 1024, "MIB": 1024**2}
LARGEST_BUDGET = 64 << 20


@dataclass(frozen=True)
class Made:
    """A packet that was made and noted as sent."""

    data: bytes
    """Empty: nothing waits."""
    sequence: int | None
    records: int
    """In the packet."""
    left: int
    """Records that wait for a later packet."""


@dataclass(frozen=True)
class Acknowledged:
    records: int
    """Acknowledged by these receipts, and not before."""
    packets: int
    """Receipts that were taken; one that was given before counts."""


class _TakenMeanwhile(Exception):
    """Another packet took one of the records."""


def make_packet(
    journal: Journal, budget_bytes: int, *, now: float | None = None, resend_after_s: float = RESEND_AFTER_S
) -> Made:
    """The packet of the most worth that takes at most `budget_bytes`, noted as sent.

    InputError where the budget holds no record. Where the packet cannot be sent after all, `withdraw` it; one that is
    lost on the way goes again after `resend_after_s`.
    """
    now = time.time() if now is None else now
    gather(journal)
    for _ in range(5):
        waiting = backlog(journal, now, now - resend_after_s)
        if not waiting.candidates:
            return Made(b"", None, 0, 0)
        taken = _taken(waiting, budget_bytes)
        try:
            data, sequence = _note_sent(journal, waiting.body(taken), taken, now, now - resend_after_s)
        except _TakenMeanwhile:
            continue
        return Made(data, sequence, len(taken), len(waiting.candidates) - len(taken))
    raise BusyError("other packets are being made of the same records; make one at a time", 10.0)


def withdraw(journal: Journal, sequence: int) -> None:
    """A packet was not sent: its records wait again, at once."""
    with journal.write() as cursor:
        row = cursor.execute("SELECT records FROM downlink_packets WHERE sequence = ?", (sequence,)).fetchone()
        if row is not None:
            cursor.executemany("UPDATE downlink_records SET sent_at = 0 WHERE id = ?", _rows(row[0]))
            cursor.execute("UPDATE downlink_packets SET records = ? WHERE sequence = ?", (_packed([]), sequence))


def acknowledge(journal: Journal, receipts: Iterable[str], *, now: float | None = None) -> Acknowledged:
    """Records of these packets are never sent again. InputError, and none is taken, where one receipt is wrong."""
    journal.add_tables(TABLES)
    now = time.time() if now is None else now
    given = [_parsed(text) for text in receipts]
    if not given:
        raise InputError("no receipt: give those that `downlink-read` printed, such as 12-9f3ab2c4")
    total = 0
    with journal.write() as cursor:
        for sequence, crc in given:
            query = "SELECT crc, records FROM downlink_packets WHERE sequence = ?"
            row = cursor.execute(query, (sequence,)).fetchone()
            if row is None or row[0] != crc:
                reason = f"is none of the last {PACKETS_KEPT}" if row is None else "was sent with another CRC"
                raise InputError(f"receipt {receipt(sequence, crc)}: packet {sequence} {reason}; no receipt was taken")
            if held := _rows(row[1]):
                cursor.executemany("UPDATE downlink_records SET acked = 1 WHERE id = ? AND acked = 0", held)
                total += cursor.rowcount
            values = (now, _packed([]), sequence)
            cursor.execute("UPDATE downlink_packets SET acked_at = ?, records = ? WHERE sequence = ?", values)
        close_scenes(cursor)
    return Acknowledged(total, len(given))


def bytes_from_text(text: str) -> int:
    """ "64KiB" -> 65536; InputError where it is no size."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in UNITS:
        raise InputError(f"--budget {text}: give bytes, such as 340, 1500B, 64KiB or 1MB")
    size = int(float(match[1]) * UNITS[match[2].upper()])
    if not 1 <= size <= LARGEST_BUDGET:
        raise InputError(f"--budget {text} is {size} bytes; allowed are 1 to {LARGEST_BUDGET}")
    return size


def _taken(waiting: Backlog, budget_bytes: int) -> list[Candidate]:
    taken = chosen(waiting.candidates, HEAD_BYTES, budget_bytes, lambda some: len(waiting.body(some)))
    if not taken:
        least = min(len(waiting.body([c])) for c in sorted(waiting.candidates, key=lambda c: c.cost)[:20])
        raise InputError(
            f"a budget of {budget_bytes} bytes holds no record: the smallest packet has {least}; give more bytes"
        )
    return taken


def _note_sent(
    journal: Journal, body: bytes, taken: Sequence[Candidate], now: float, sent_before: float
) -> tuple[bytes, int]:
    """The packet and its sequence, noted in one transaction."""
    ids = sorted(candidate.id for candidate in taken)
    with journal.write() as cursor:
        cursor.executemany(
            "UPDATE downlink_records SET sent_at = ? WHERE id = ? AND acked = 0 AND sent_at <= ?",
            [(now, i, sent_before) for i in ids],
        )
        if cursor.rowcount != len(ids):
            raise _TakenMeanwhile
        cursor.execute(
            "INSERT INTO downlink_packets (crc, made_at, bytes, records) VALUES (0, ?, ?, ?)",
            (now, len(body), _packed(ids)),
        )
        sequence = int(cursor.lastrowid or 0)
        data, crc = sealed(body, sequence, int(now))
        cursor.execute("UPDATE downlink_packets SET crc = ? WHERE sequence = ?", (crc, sequence))
        cursor.execute("DELETE FROM downlink_packets WHERE sequence <= ?", (sequence - PACKETS_KEPT,))
    return data, sequence


def _parsed(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,10})-([0-9a-fA-F]{8})", text.strip())
    if match is None:
        raise InputError(f"receipt {text[:40]!r} is none; a receipt is SEQUENCE-CRC, such as 12-9f3ab2c4")
    return int(match[1]), int(match[2], 16)


def _packed(ids: list[int]) -> bytes:
    return msgspec.msgpack.encode(ids)


def _rows(packed: bytes) -> list[tuple[int]]:
    return [(i,) for i in msgspec.msgpack.decode(packed, type=list[int])]
