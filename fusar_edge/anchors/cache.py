"""Decoded chunks kept in memory, the least recently used leaving first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

Chunk = npt.NDArray[np.int8]


class ChunkCache:
    """LRU of arrays with a budget in bytes. Safe between threads; arrays are shared, so nobody writes into them."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self.hits = 0
        self.misses = 0
        self._chunks: OrderedDict[Hashable, Chunk] = OrderedDict()
        self._lock = threading.Lock()

    def get_many(self, keys: Sequence[Hashable]) -> list[Chunk | None]:
        """One entry per key, None where it is not held; one lock for all, since a tile asks for up to 100 chunks."""
        with self._lock:
            found = [self._chunks.get(key) for key in keys]
            for key, chunk in zip(keys, found, strict=True):
                if chunk is not None:
                    self._chunks.move_to_end(key)
            missing = sum(chunk is None for chunk in found)
            self.misses += missing
            self.hits += len(found) - missing
        return found

    def put(self, key: Hashable, chunk: Chunk) -> None:
        """Keep a chunk and drop the oldest ones above the budget (this one too, when it alone is larger)."""
        with self._lock:
            old = self._chunks.pop(key, None)
            self.used_bytes += chunk.nbytes - (0 if old is None else old.nbytes)
            self._chunks[key] = chunk
            while self.used_bytes > self.budget_bytes:
                _, dropped = self._chunks.popitem(last=False)
                self.used_bytes -= dropped.nbytes
