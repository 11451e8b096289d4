"""The KV cache: one buffer with the token outermost, so that appending is writing the next rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fusar_edge.errors import InputError


class Rows:
    """`capacity` rows, one per token, of which the first `length` are in use."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length = capacity, 0

    @property
    def room(self) -> int:
        """Tokens that still fit."""
        return self.capacity - self.length

    def check_room(self, tokens: int) -> None:
        """InputError where `tokens` more rows do not fit."""
        if tokens > self.room:
            raise InputError(
                f"{tokens} tokens after {self.length} do not fit the KV cache of {self.capacity}: "
                "ask a shorter question, or build the bundle with more cache_tokens"
            )

    def truncate(self, length: int) -> None:
        """Forget every row from `length` on; the rows before it stay valid."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate a cache of {self.length} rows to {length}")
        self.length = length


class KvCache(Rows):
    """Rows [capacity, layers, 2, batch, kv_heads, head_dim]; the first `length` rows are in use.

    The buffer is never resized or moved: a backend may keep pointers into it. Pages that are never written cost no
    memory, so a large capacity is cheap.
    """

    def __init__(self, capacity: int, row: tuple[int, ...], dtype: npt.DTypeLike = np.float32) -> None:
        """`row` is (layers, 2, batch, kv_heads, head_dim)."""
        super().__init__(capacity)
        self.buffer: npt.NDArray[np.generic] = np.empty((capacity, *row), dtype)

    def past(self) -> npt.NDArray[np.generic]:
        """View [length, ...] of the rows in use; length 0 is allowed."""
        return self.buffer[: self.length]

    def next_rows(self, tokens: int) -> npt.NDArray[np.generic]:
        """View [tokens, ...] of the rows that follow `past()`; InputError where they do not fit."""
        self.check_room(tokens)
        return self.buffer[self.length : self.length + tokens]

    def advance(self, tokens: int) -> None:
        """Count the rows that a backend has written through `next_rows`."""
        self.next_rows(tokens)
        self.length += tokens
