"""No GPU: a device made of host memory that is stricter than CUDA, so that tests see what a GPU would hide.

Fresh and freed memory holds 0xFF bytes, which is NaN in every float; freed addresses are never given again; an access
that leaves its allocation, and a copy of memory that is not page-locked, are errors. Nothing enqueued happens before
`synchronise`: a host array that is changed or read too early has the wrong content.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from fusar_edge.errors import DeviceError
from fusar_edge.runtime.device import ALIGNMENT, Array, OwnedByThread, aligned

POISON = 0xFF
_FIRST = 0x7_0000_0000
_STREAM = 0x51


class NumpyDevice(OwnedByThread):
    """`memory_bytes` of device memory."""

    def __init__(self, memory_bytes: int = 1 << 30) -> None:
        super().__init__()
        self.memory_bytes = memory_bytes
        self._blocks: dict[int, Array] = {}
        self._pinned: list[Array] = []
        self._next = _FIRST
        self._queue: list[Callable[[], None]] = []
        self._current = 0
        self.recordings = self.launches = 0

    @property
    def stream(self) -> int:
        return _STREAM

    def __enter__(self) -> Self:
        self._check_thread()
        self._current += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._current -= 1

    def alloc(self, nbytes: int) -> int:
        self._check_current()
        held = sum(block.nbytes for block in self._blocks.values())
        if nbytes < 1 or held + nbytes > self.memory_bytes:
            raise DeviceError(f"cannot allocate {nbytes} bytes: {self.memory_bytes - held} of device memory are free")
        self.allocations += 1
        address = self._next
        self._next += aligned(nbytes) + ALIGNMENT  # one free step between blocks
        self._blocks[address] = np.full(nbytes, POISON, np.uint8)
        return address

    def free(self, address: int) -> None:
        self._check_current()
        if address not in self._blocks:
            raise DeviceError(f"{address:#x} was not allocated, or was freed before")
        self._blocks.pop(address).fill(POISON)

    def pinned(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        self._check_current()
        self.allocations += 1
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = np.full(nbytes, POISON, np.uint8)
        self._pinned.append(memory)
        return memory.view(dtype).reshape(shape)

    def copy_to_device(self, address: int, array: Array) -> None:
        self._check_pinned(array)
        self.enqueue(lambda: np.copyto(self.view(address, array.nbytes), array.reshape(-1).view(np.uint8)))

    def copy_to_host(self, array: Array, address: int) -> None:
        self._check_pinned(array)
        self.enqueue(lambda: np.copyto(array.reshape(-1).view(np.uint8), self.view(address, array.nbytes)))

    def synchronise(self) -> None:
        self._check_current()
        self.synchronisations += 1
        queue, self._queue = self._queue, []
        for job in queue:
            job()

    def record(self, job: Callable[[], None]) -> Callable[[], None]:
        self._check_current()
        queue, self._queue = self._queue, []
        try:
            job()
        finally:
            recorded, self._queue = self._queue, queue
        self.recordings += 1

        def launch() -> None:
            self.launches += 1
            for part in recorded:
                self.enqueue(part)

        return launch

    def close(self) -> None:
        self._closes()
        for block in self._blocks.values():
            block.fill(POISON)
        self._blocks.clear()
        self._queue.clear()

    def enqueue(self, job: Callable[[], None]) -> None:
        """Add work to the stream; what stands in for an engine does so."""
        self._check_current()
        self._queue.append(job)

    def view(self, address: int, nbytes: int) -> Array:
        """Device memory as bytes [nbytes]; DeviceError where any of them is not allocated."""
        starts = list(self._blocks)  # ascending: addresses only grow
        place = bisect_right(starts, address) - 1
        offset = address - starts[place] if place >= 0 else 0
        if place < 0 or offset + nbytes > self._blocks[starts[place]].nbytes:
            raise DeviceError(f"{nbytes} bytes at {address:#x} are not allocated: an illegal memory access")
        return self._blocks[starts[place]][offset : offset + nbytes]

    def _check_current(self) -> None:
        self._check_thread()
        if not self._current:
            raise DeviceError("no context is current: use the device inside `with device:`")

    def _check_pinned(self, array: Array) -> None:
        self._check_copy(array)
        self._check_current()
        if not any(np.may_share_memory(array, memory) for memory in self._pinned):
            raise DeviceError("an asynchronous copy needs page-locked memory: use an array of `pinned`")


def open_numpy() -> NumpyDevice:
    return NumpyDevice()
