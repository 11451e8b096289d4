"""What the header of a TIFF claims, read without GDAL: a file is refused here before any decoder sees it.

TIFF 6.0 (Adobe, 1992) and BigTIFF (libtiff's specification): directories of tags, each with a type, a count and a value
or the value's offset. Every number is held against the size of the file before anything is allocated for it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from fusar_edge.errors import SceneError

_DTYPES = {1: "u1", 2: "i1", 3: "u2", 4: "u4", 5: "u8", 6: "i1", 7: "i1", 8: "i2", 9: "i4", 10: "i8", 11: "f4"}
_DTYPES |= {12: "f8", 13: "u4", 16: "u8", 17: "i8", 18: "u8"}
"""TIFF type -> an array of as many bytes; only what is unsigned here counts as a number of the header."""
WIDTH, HEIGHT, BITS, COMPRESSION, SAMPLES, PLANAR, SAMPLE_FORMAT, SUB_IFDS = 256, 257, 258, 259, 277, 284, 339, 330
STRIP_OFFSETS, STRIP_BYTES, ROWS_PER_STRIP = 273, 279, 278
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES = 322, 323, 324, 325
_BLOCK_TAGS = (STRIP_OFFSETS, STRIP_BYTES, TILE_OFFSETS, TILE_BYTES)
MOST_DIRECTORIES = 64
"""Image, mask and overviews of a scene are about 20."""
MOST_TAGS = 512
LARGEST_TAG_BYTES = 4 << 20
"""Of metadata, GCPs and the like; lists of blocks may be longer."""
MOST_BLOCKS = 8_000_000

Numbers = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Directory:
    """One image of the file: the scene itself, a mask or an overview."""

    width: int
    height: int
    samples: int
    bits: int
    """Of each sample."""
    sample_format: int
    """1 unsigned, 2 signed, 3 float, 4 undefined, 5 and 6 complex."""
    compression: int
    block_width: int
    block_height: int
    interleaved: bool
    """Samples of a pixel side by side, else plane by plane."""
    tiled: bool

    @property
    def raw_bytes(self) -> int:
        """Uncompressed size of the image, whole blocks."""
        return self.blocks * self.block_bytes

    @property
    def block_bytes(self) -> int:
        """Uncompressed size of a block."""
        samples = self.samples if self.interleaved else 1
        return -(-self.block_width * samples * self.bits // 8) * self.block_height

    @property
    def blocks(self) -> int:
        across, down = -(-self.width // self.block_width), -(-self.height // self.block_height)
        return across * down * (1 if self.interleaved else self.samples)


def read_header(path: Path, name: str) -> list[Directory]:
    """Every directory of a TIFF or BigTIFF, the scene first. SceneError says what of `name` is wrong."""
    with open(path, "rb") as file:
        return list(_Reader(file, name).directories())


class _Reader:
    """Tags of one file; all reads are bounded by its size."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.file, self.name = file, name
        self.size = os.fstat(file.fileno()).st_size
        head = self._bytes(0, min(16, self.size))
        order = {b"II": "<", b"MM": ">"}.get(head[:2])
        version = struct.unpack(order + "H", head[2:4])[0] if order and len(head) >= 8 else 0
        if order is None or version not in (42, 43) or (version == 43 and len(head) < 16):
            kind = "it is empty" if not self.size else "its first bytes are not those of a TIFF"
            raise SceneError(f"{name} is no GeoTIFF: {kind}; send a GeoTIFF")
        self.order, self.big = order, version == 43
        if self.big and struct.unpack(order + "HH", head[4:8]) != (8, 0):
            raise self._damaged("a BigTIFF header that is none")
        self.first = struct.unpack(order + ("Q" if self.big else "I"), head[8:16] if self.big else head[4:8])[0]

    def directories(self) -> Iterator[Directory]:
        pending, seen = [self.first], set[int]()
        while pending:
            offset = pending.pop()
            if offset in seen or len(seen) == MOST_DIRECTORIES:
                raise self._damaged(f"its directories are a loop, or more than {MOST_DIRECTORIES}")
            seen.add(offset)
            tags, following = self._tags(offset)
            pending += [int(v) for v in tags.get(SUB_IFDS, ())][:MOST_DIRECTORIES] + ([following] if following else [])
            yield self._directory(tags)

    def _tags(self, offset: int) -> tuple[dict[int, Numbers], int]:
        """Values of the tags that we or the decoder act on, and the offset of the next directory (0: none)."""
        count_form, entry_bytes, value_bytes = ("Q", 20, 8) if self.big else ("H", 12, 4)
        (count,) = self._unpack(count_form, offset)
        if not 1 <= count <= MOST_TAGS:
            raise self._damaged(f"a directory of {count} tags")
        start = offset + struct.calcsize(count_form)
        table = self._bytes(start, count * entry_bytes)
        (following,) = self._unpack("Q" if self.big else "I", start + len(table))
        tags = {}
        for at in range(0, len(table), entry_bytes):
            tag, kind, length = struct.unpack_from(self.order + ("HHQ" if self.big else "HHI"), table, at)
            if kind not in _DTYPES:
                continue  # TIFF 6.0: readers skip types that they do not know
            dtype = np.dtype(self.order + _DTYPES[kind])
            data = table[at + entry_bytes - value_bytes : at + entry_bytes]
            if length * dtype.itemsize > value_bytes:
                allowed = MOST_BLOCKS * 8 if tag in _BLOCK_TAGS else LARGEST_TAG_BYTES
                if length * dtype.itemsize > allowed:
                    raise self._damaged(f"tag {tag} of {length} values")
                (place,) = struct.unpack(self.order + ("Q" if self.big else "I"), data)
                data = self._bytes(place, length * dtype.itemsize)
            tags[tag] = np.frombuffer(data, dtype, count=length)
        return tags, following

    def _directory(self, tags: dict[int, Numbers]) -> Directory:
        def number(tag: int, default: int | None = None) -> int:
            values = tags.get(tag)
            if values is None or not len(values) or values.dtype.kind != "u":
                if values is None and default is not None:
                    return default
                raise self._damaged(f"tag {tag} is missing or no number")
            return int(values[0])

        width, height, samples = number(WIDTH), number(HEIGHT), number(SAMPLES, 1)
        tiled = TILE_WIDTH in tags
        across, down = (number(TILE_WIDTH), number(TILE_HEIGHT)) if tiled else (width, number(ROWS_PER_STRIP, height))
        bits, formats = tags.get(BITS, np.ones(1, np.uint16)), tags.get(SAMPLE_FORMAT, np.ones(1, np.uint16))
        if not min(width, height, samples, across, down) or len(set(bits.tolist())) != 1 or not len(formats):
            raise self._damaged("a side or a block of no pixels, or bands of several types")
        found = Directory(
            width=width,
            height=height,
            samples=samples,
            bits=int(bits[0]),
            sample_format=int(formats[0]),
            compression=number(COMPRESSION, 1),
            block_width=across,
            block_height=down if tiled else min(down, height),
            interleaved=number(PLANAR, 1) == 1,
            tiled=tiled,
        )
        self._check_blocks(tags, found)
        return found

    def _check_blocks(self, tags: dict[int, Numbers], found: Directory) -> None:
        """Every block that the header lists lies inside the file; a length of 0 is a hole, which GDAL fills."""
        offsets, lengths = tags.get(STRIP_OFFSETS), tags.get(STRIP_BYTES)
        if found.tiled:
            offsets, lengths = tags.get(TILE_OFFSETS, offsets), tags.get(TILE_BYTES, lengths)
        if offsets is None or lengths is None or {offsets.dtype.kind, lengths.dtype.kind} != {"u"}:
            raise self._damaged("no list of blocks")
        if found.blocks > MOST_BLOCKS or min(len(offsets), len(lengths)) < found.blocks:
            raise self._damaged(f"{len(offsets)} blocks are listed where {found.blocks} make the image")
        starts, sizes = offsets[: found.blocks].astype(np.float64), lengths[: found.blocks].astype(np.float64)
        if (beyond := np.flatnonzero((starts + sizes > self.size) & (sizes > 0))).size:
            raise self._damaged(f"{beyond.size} of {found.blocks} blocks lie beyond its end")

    def _unpack(self, form: str, offset: int) -> tuple[int, ...]:
        return struct.unpack(self.order + form, self._bytes(offset, struct.calcsize(form)))

    def _bytes(self, offset: int, count: int) -> bytes:
        if offset + count > self.size:
            raise self._damaged(f"its header points to byte {offset + count} of {self.size}")
        self.file.seek(offset)
        data = self.file.read(count)
        if len(data) != count:
            raise self._damaged("it became shorter while it was read")
        return data

    def _damaged(self, what: str) -> SceneError:
        return SceneError(f"{self.name} is cut or damaged ({what}); send it again")
