"""A packet: records in as few bytes as the standard library allows, readable without any other packet.

    header    19 bytes, big endian: "FE", format, sequence, Unix time, bytes of `numbers`, CRC-32 of all the rest
    numbers   LZMA of columns (columns.py): first the scenes', then those of each kind of record, ordered by scene and
              tile
    texts     Deflate with fusar_edge.service.onboard.dictionary: names, classes, captions, each once, ended by NUL

Places are differences to the record before, in 1e-5 degrees (1.1 m or less, so at most 0.8 m off); sizes are whole
pixels. A receipt, "SEQUENCE-CRC", says that a packet arrived whole. The CRC finds damage, not forgery: receipts are
commands, and take the way that commands take.
"""

from __future__ import annotations

import itertools
import lzma
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fusar_edge.errors import InputError
from fusar_edge.service.onboard.columns import (
    MOST_RECORDS,
    Ints,
    Reader,
    Words,
    bytes_from_column,
    differences,
    signed,
    starts_of_runs,
    sums,
    unsigned,
    words,
)
from fusar_edge.service.onboard.dictionary import DICTIONARY
from fusar_edge.service.onboard.records import Kind, Record, SceneHead

MAGIC, FORMAT = b"FE", 1
HEADER = struct.Struct(">2sBIIII")
STEP_DEG = 1e-5
LARGEST = 1 << 26
"""Bytes that either part may unpack to."""
STATUSES = ("queued", "running", "done", "failed")

Group = tuple[SceneHead, Sequence[Record]]
_LZMA = [{"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 20, "lc": 0, "lp": 0, "pb": 0}]


@dataclass(frozen=True)
class Packet:
    """A packet as read."""

    sequence: int
    made_at: int
    """Unix seconds."""
    crc: int
    size: int
    """Bytes."""
    groups: list[tuple[SceneHead, list[Record]]]

    @property
    def receipt(self) -> str:
        return receipt(self.sequence, self.crc)


def receipt(sequence: int, crc: int) -> str:
    return f"{sequence}-{crc:08x}"


def encode_body(groups: Sequence[Group]) -> bytes:
    """Everything but the header's variable fields; `sealed` completes it. Same records, same bytes, in any order."""
    ordered = sorted(groups, key=lambda group: group[0].id)
    texts: dict[str, int] = {}
    columns = [*_head_columns(ordered, texts)]
    for kind in list(Kind)[1:]:
        rows = [sorted((r for r in records if r.kind == kind), key=_order) for _, records in ordered]
        columns += _row_columns(ordered, rows, texts)
    numbers = lzma.compress(b"".join(map(bytes_from_column, columns)), format=lzma.FORMAT_RAW, filters=_LZMA)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=DICTIONARY)
    packed = packer.compress("".join(f"{text}\0" for text in texts).encode()) + packer.flush()
    return HEADER.pack(MAGIC, FORMAT, 0, 0, len(numbers), 0) + numbers + packed


def sealed(body: bytes, sequence: int, made_at: int) -> tuple[bytes, int]:
    """The packet, and its CRC."""
    magic, form, _, _, split, _ = HEADER.unpack_from(body)
    rest = body[HEADER.size :]
    crc = zlib.crc32(rest, zlib.crc32(HEADER.pack(magic, form, sequence, made_at, split, 0)))
    return HEADER.pack(magic, form, sequence, made_at, split, crc) + rest, crc


def decode(data: bytes) -> Packet:
    """InputError where it is no packet, of another format, or not as it was sent."""
    if len(data) < HEADER.size or data[:2] != MAGIC:
        raise InputError(f"{len(data)} bytes that do not begin as a packet of fusar-edge; give what `downlink` wrote")
    _, form, sequence, made_at, split, crc = HEADER.unpack_from(data)
    if form != FORMAT:
        raise InputError(f"a packet of format {form}; this fusar-edge reads format {FORMAT}: use the one that made it")
    if sealed(data, sequence, made_at)[1] != crc:
        raise InputError(f"packet {sequence}: its CRC-32 is not {crc:08x}: bytes were lost or changed; send it again")
    try:
        numbers = _unpacked(lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_LZMA), data[HEADER.size :][:split])
        texts = _unpacked(zlib.decompressobj(-15, zdict=DICTIONARY), data[HEADER.size + split :])
        groups = _groups(numbers, texts.decode().split("\0"))
    except (lzma.LZMAError, zlib.error, ValueError, IndexError, OverflowError) as problem:
        raise InputError(f"packet {sequence} is not as fusar-edge writes it ({problem}); send it again") from None
    return Packet(sequence, made_at, crc, len(data), groups)


def _order(record: Record) -> tuple[object, ...]:
    return (record.tile, -record.lat, record.lon, record.text, record)


# Columns -------------------------------------------------------------------------------------------------------------


def _head_columns(groups: Sequence[Group], texts: dict[str, int]) -> Iterator[Words]:
    """One number, how many scenes; then columns of that length, the last ones how many records of each kind."""
    heads = [head for head, _ in groups]
    yield np.array([len(heads)], np.uint64)
    yield np.array([int(head.id, 16) for head in heads], np.uint64)
    yield words([_text(head.name, texts) for head in heads])
    yield words([0 if head.time is None else head.time + 1 for head in heads])
    yield words([2 * STATUSES.index(head.status) + head.simulated for head in heads])
    for place in (_steps([head.lon for head in heads]), _steps([head.lat for head in heads])):
        yield unsigned(place)
    yield words([head.width for head in heads])
    yield words([head.height for head in heads])
    axes = np.array([head.axes for head in heads], np.float16).reshape(-1, 4)
    yield axes.view(np.uint16).astype(np.uint64).ravel()
    for name in ("tiles", "answered", "skipped", "not_parsed"):
        yield words([getattr(head, name) for head in heads])
    for kind in Kind:
        yield words([sum(record.kind == kind for record in records) for _, records in groups])


def _row_columns(groups: Sequence[Group], rows: Sequence[Sequence[Record]], texts: dict[str, int]) -> Iterator[Words]:
    """Columns of the records of one kind, `rows[i]` those of the scene i; no column where there are no records."""
    flat = [record for records in rows for record in records]
    if not flat:
        return
    starts = starts_of_runs([len(records) for records in rows])
    homes = [(head.lon, head.lat) for (head, _), records in zip(groups, rows, strict=True) if records]
    lon0, lat0 = np.array(homes).T
    yield unsigned(differences(np.array([r.tile for r in flat]), starts))
    yield unsigned(differences(_steps([r.lon for r in flat]), starts, _steps(lon0)))
    yield unsigned(differences(_steps([r.lat for r in flat]), starts, _steps(lat0)))
    yield words([r.width for r in flat])
    yield words([r.height for r in flat])
    yield unsigned(differences(np.array([r.confidence for r in flat]), starts))
    yield words([_text(r.text, texts) for r in flat])
    yield words([r.number for r in flat])


def _groups(numbers: bytes, texts: list[str]) -> list[tuple[SceneHead, list[Record]]]:
    column = Reader(numbers).column
    count = int(column(1)[0])
    ids, names, times, flags = (column(count).tolist() for _ in range(4))
    lon0, lat0 = signed(column(count)), signed(column(count))
    widths, heights = column(count).tolist(), column(count).tolist()
    axes = column(4 * count).astype(np.uint16).view(np.float16).astype(float).reshape(-1, 4).tolist()
    tiles, answered, skipped, not_parsed = (column(count).tolist() for _ in range(4))
    counts = [column(count).tolist() for _ in Kind]
    if count > MOST_RECORDS or sum(map(sum, counts)) > MOST_RECORDS:
        raise ValueError(f"more than {MOST_RECORDS} records")
    found: list[list[Record]] = [[Record(Kind.scene, 0, 0.0, 0.0, 0, 0, 100)] * n for n in counts[Kind.scene]]
    for kind in list(Kind)[1:]:
        _read_rows(kind, counts[kind], (lon0, lat0), column, texts, found)
    heads = [
        SceneHead(
            id=f"{ids[i]:016x}",
            name=texts[names[i]],
            time=times[i] - 1 if times[i] else None,
            simulated=bool(flags[i] % 2),
            status=STATUSES[flags[i] // 2],
            lon=float(lon0[i] * STEP_DEG),
            lat=float(lat0[i] * STEP_DEG),
            width=widths[i],
            height=heights[i],
            axes=tuple(axes[i]),
            tiles=tiles[i],
            answered=answered[i],
            skipped=skipped[i],
            not_parsed=not_parsed[i],
        )
        for i in range(count)
    ]
    return list(zip(heads, found, strict=True))


def _read_rows(
    kind: Kind,
    counts: list[int],
    homes: tuple[Ints, Ints],
    column: Callable[[int], Words],
    texts: list[str],
    found: list[list[Record]],
) -> None:
    """Append the records of one kind to their scenes."""
    total = sum(counts)
    if not total:
        return
    starts, held = starts_of_runs(counts), np.array(counts) > 0
    tile = sums(signed(column(total)), starts)
    lon = sums(signed(column(total)), starts, homes[0][held]) * STEP_DEG
    lat = sums(signed(column(total)), starts, homes[1][held]) * STEP_DEG
    width, height = column(total), column(total)
    confidence = sums(signed(column(total)), starts)
    text, number = column(total), column(total)
    rows = zip(*(v.tolist() for v in (tile, lon, lat, width, height, confidence, text, number)), strict=True)
    for records, n in zip(found, counts, strict=True):
        for t, x, y, w, h, c, index, value in itertools.islice(rows, n):
            records.append(Record(kind, t, x, y, w, h, c, texts[index], value))


def _text(text: str, texts: dict[str, int]) -> int:
    return texts.setdefault(text.replace("\0", " "), len(texts))


def _steps(degrees: Sequence[float] | npt.NDArray[np.float64]) -> Ints:
    return np.round(np.asarray(degrees, np.float64) / STEP_DEG).astype(np.int64)


def _unpacked(part: lzma.LZMADecompressor | zlib._Decompress, data: bytes) -> bytes:
    """ValueError where it is more than LARGEST, or does not end."""
    out: bytes = part.decompress(data, LARGEST)
    if not part.eof:
        raise ValueError("a part does not end")
    return out
