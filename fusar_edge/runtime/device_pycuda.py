"""A GPU through PyCUDA 2026.1, in the device's primary context, which TensorRT uses too.

Run so far over a stand-in for the driver, made of host memory, and on no GPU. `pycuda.autoinit` would make a context of
its own and leave it on the stack of whichever thread imported it, so it is not used.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import numpy.typing as npt

from fusar_edge.errors import DeviceError
from fusar_edge.runtime.device import Array, OwnedByThread


class PycudaDevice(OwnedByThread):
    """Device 0. The context is current only inside `with`: PyCUDA ends a process whose thread leaves one behind."""

    def __init__(self, cuda: Any) -> None:
        """`cuda`: the module pycuda.driver."""
        super().__init__()
        self._cuda = cuda
        self._memory: dict[int, Any] = {}
        self._pinned: list[Any] = []
        with self._explained("open device 0"):
            cuda.init()
            self._context = cuda.Device(0).retain_primary_context()
            with self:
                self._stream = cuda.Stream()

    @property
    def stream(self) -> int:
        return int(self._stream.handle)

    def __enter__(self) -> Self:
        self._check_thread()
        self._context.push()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context.pop()

    def alloc(self, nbytes: int) -> int:
        self._check_thread()
        with self._explained(f"allocate {nbytes} bytes of device memory"):
            memory = self._cuda.mem_alloc(nbytes)
        self.allocations += 1
        self._memory[int(memory)] = memory
        return int(memory)

    def free(self, address: int) -> None:
        self._check_thread()
        with self._explained("free device memory"):
            self._memory.pop(address).free()

    def pinned(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        self._check_thread()
        with self._explained(f"allocate page-locked memory of {shape}"):
            array: Array = self._cuda.pagelocked_empty(shape, dtype)
        self.allocations += 1
        self._pinned.append(array.base)
        return array

    def copy_to_device(self, address: int, array: Array) -> None:
        self._check_copy(array)
        with self._explained(f"copy {array.nbytes} bytes to the device"):
            self._cuda.memcpy_htod_async(address, array, self._stream)

    def copy_to_host(self, array: Array, address: int) -> None:
        self._check_copy(array)
        with self._explained(f"copy {array.nbytes} bytes from the device"):
            self._cuda.memcpy_dtoh_async(array, address, self._stream)

    def synchronise(self) -> None:
        self._check_thread()
        self.synchronisations += 1
        with self._explained("finish what was enqueued"):
            self._stream.synchronize()

    def record(self, job: Callable[[], None]) -> Callable[[], None]:
        raise DeviceError("PyCUDA 2026.1 has no capture of a stream; cuda-python has (pip install cuda-python)")

    def close(self) -> None:
        if not self._closes():
            return
        self._context.push()
        for memory in (*self._memory.values(), *self._pinned):
            memory.free()
        del self._stream
        self._context.pop()
        # Left to its destructor, PyCUDA would detach the primary context as if it were one of its own.
        self._context.detach()

    def __del__(self) -> None:
        if hasattr(self, "_stream"):
            self.close()

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except self._cuda.Error as problem:
            raise DeviceError(f"the GPU could not {what}: {problem}") from None


def open_pycuda() -> PycudaDevice:
    try:
        cuda = importlib.import_module("pycuda.driver")
    except ImportError as problem:
        raise DeviceError(
            f"PyCUDA is installed but does not load ({problem}): compile it on this device, with its CUDA toolkit, by "
            "`pip install --force-reinstall --no-binary pycuda pycuda`"
        ) from None
    return PycudaDevice(cuda)
