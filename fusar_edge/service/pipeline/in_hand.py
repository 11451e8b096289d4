"""Which scenes each thread has in hand, in a file that a process which dies leaves behind.

A scene that kills its reader or its engine (a crash within a library, memory) would do so at every restart: see
`Pipeline.start`.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

_ID_BYTES = 16
_ID = re.compile(r"[0-9a-f]{16}")


class InHand:
    """One slot of `most` scenes for each thread. Not synced: a power cut is not the fault of a scene."""

    def __init__(self, path: Path, most: int) -> None:
        self._path, self._width = path, most * _ID_BYTES
        self._file = -1

    def open(self) -> list[str]:
        """Begin anew; returns what the last process held when it died. OSError where the file cannot be made."""
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        held = os.read(self._file, 1 << 16).decode("ascii", "replace")
        os.ftruncate(self._file, 0)
        return list(dict.fromkeys(_ID.findall(held)))

    @contextlib.contextmanager
    def holding(self, thread: int, scene_ids: Sequence[str]) -> Iterator[None]:
        """While the body runs, thread number `thread` has these in hand."""
        self._note(thread, "".join(dict.fromkeys(scene_ids)))
        try:
            yield
        finally:
            self._note(thread, "")

    def close(self) -> None:
        """Twice is fine."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def _note(self, thread: int, ids: str) -> None:
        """A disk that takes nothing must not end the work: then a death goes unexplained."""
        with contextlib.suppress(OSError):
            os.pwrite(self._file, ids.ljust(self._width).encode(), thread * self._width)
