"""Columns of integers as bytes that compress well: differences, and bytes of one significance side by side.

A column is one byte, how many planes it has, then the planes, the most significant bytes first. Its length is known
from columns before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

MOST_RECORDS = 1 << 20
"""In a packet; a column may have four numbers for each."""

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]


class Reader:
    """Columns one after the other; ValueError where they end too early."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def column(self, length: int) -> Words:
        planes = self._data[self._at]
        end = self._at + 1 + planes * length
        if planes > 8 or length > 4 * MOST_RECORDS:
            raise ValueError("a column leaves the packet")
        rows = np.frombuffer(self._data, np.uint8, planes * length, self._at + 1).reshape(planes, length)
        self._at = end
        wide = np.zeros((length, 8), np.uint8)
        wide[:, :planes] = rows[::-1].T
        return wide.view("<u8").astype(np.uint64).ravel()


def bytes_from_column(column: Words) -> bytes:
    rows = column.astype("<u8").view(np.uint8).reshape(-1, 8)
    planes = max((plane + 1 for plane in range(8) if np.any(rows[:, plane])), default=0)
    return bytes([planes]) + rows[:, :planes].T[::-1].tobytes()


def words(values: Sequence[int]) -> Words:
    return np.array(values, np.uint64)


def starts_of_runs(counts: Sequence[int]) -> Ints:
    """Where each scene's run of records begins; scenes without any left out."""
    lengths = np.array([n for n in counts if n], np.int64)
    return np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)


def differences(values: Ints, starts: Ints, homes: Ints | int = 0) -> Ints:
    """To the value before, or where a run begins to its home."""
    out = np.diff(values, prepend=0)
    out[starts] = values[starts] - homes
    return out


def sums(differences: Ints, starts: Ints, homes: Ints | int = 0) -> Ints:
    """What `differences` was made of."""
    total = np.cumsum(differences)
    before = np.concatenate([[0], total])[starts]
    lengths = np.diff(np.append(starts, len(differences)))
    return total - np.repeat(before, lengths) + np.repeat(np.broadcast_to(homes, starts.shape), lengths)


def unsigned(values: Ints) -> Words:
    """0, -1, 1, -2 ... -> 0, 1, 2, 3 ..."""
    return ((values << 1) ^ (values >> 63)).astype(np.uint64)


def signed(words: Words) -> Ints:
    return (words >> np.uint64(1)).astype(np.int64) ^ -(words & np.uint64(1)).astype(np.int64)
