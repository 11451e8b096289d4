"""A fixed piece of work that no version of fusar-edge changes: what the machine itself did while it was measured.

It is timed between the tiles. Where two runs differ in it, the machine differed, and `bench diff` says so and allows
for it. NumPy alone, one thread, a fraction of a millisecond: a product (arithmetic) and a sweep over 4 MiB (memory).
"""

from __future__ import annotations

import time

import numpy as np


class Reference:
    """Buffers of the kernel; calling it runs it once and gives milliseconds."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        # 96 x 96: below the size at which BLAS libraries start threads.
        self._a, self._b = random.random((2, 96, 96), np.float32)
        self._out = np.empty_like(self._a)
        self._field = random.random(1 << 20, np.float32)
        self()

    def __call__(self) -> float:
        start = time.perf_counter()
        for _ in range(8):
            np.matmul(self._a, self._b, out=self._out)
        np.add(self._field, 1e-9, out=self._field)
        np.multiply(self._field, 1.0, out=self._field)
        return (time.perf_counter() - start) * 1e3
