"""A clock in units of a calibration kernel, so that a stored baseline holds on a faster or slower machine.

What takes as long as one run of the kernel takes 1 ms on this clock. Two kernels: NumPy's arithmetic and memory for
what computes, an interpreter's work for what is Python.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from fusar_edge.bench.reference import Reference

RUNS = 41
Kernel = Callable[[], float]
"""Runs once; returns milliseconds."""


def interpreter_kernel() -> float:
    """Dictionary, string and call work of the interpreter, about 1 ms."""
    start = time.perf_counter()
    found: dict[str, int] = {}
    for number in range(4000):
        word = f"{number % 97}:{number}"
        found[word.partition(":")[0]] = len(word)
    return (time.perf_counter() - start) * 1e3


class KernelClock:
    """`time.perf_counter` at the kernel's rate; `set` before a benchmark, `drift` after it."""

    def __init__(self, kernel: Kernel, now: Callable[[], float] = time.perf_counter) -> None:
        self.kernel, self._now, self.kernel_ms = kernel, now, 1.0

    def __call__(self) -> float:
        """Seconds, were the kernel's run 1 ms."""
        return self._now() / self.kernel_ms

    def set(self) -> float:
        """Measure the kernel; returns its milliseconds (median)."""
        self.kernel_ms = statistics.median(self.kernel() for _ in range(RUNS))
        return self.kernel_ms

    def drift(self) -> float:
        """The kernel's time now over that at `set`: how far the machine itself moved meanwhile."""
        return statistics.median(self.kernel() for _ in range(RUNS)) / self.kernel_ms


CLOCKS = {"numbers": KernelClock(Reference()), "interpreter": KernelClock(interpreter_kernel)}
