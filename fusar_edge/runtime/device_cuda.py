"""A GPU through cuda-python's bindings of the driver API, 12.6 to 13.x, in the device's primary context.

Every call returns (status, value...). Run so far over a stand-in for the driver, made of host memory, and on no GPU.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fusar_edge.errors import DeviceError
from fusar_edge.runtime.device import Array, OwnedByThread


class CudaDevice(OwnedByThread):
    """Device 0."""

    def __init__(self, cuda: Any) -> None:
        """`cuda`: the module cuda.bindings.driver."""
        super().__init__()
        self._cuda = cuda
        self._memory: set[int] = set()
        self._pinned: list[int] = []
        self._graphs: list[Any] = []
        self._call("cuInit", 0)
        self._number = self._call("cuDeviceGet", 0)
        self._context = self._call("cuDevicePrimaryCtxRetain", self._number)
        with self:
            self._stream = self._call("cuStreamCreate", int(cuda.CUstream_flags.CU_STREAM_NON_BLOCKING))

    @property
    def stream(self) -> int:
        return int(self._stream)

    def __enter__(self) -> Self:
        self._check_thread()
        self._call("cuCtxPushCurrent", self._context)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call("cuCtxPopCurrent")

    def alloc(self, nbytes: int) -> int:
        self._check_thread()
        address = int(self._call("cuMemAlloc", nbytes))
        self.allocations += 1
        self._memory.add(address)
        return address

    def free(self, address: int) -> None:
        self._check_thread()
        self._memory.remove(address)
        self._call("cuMemFree", address)

    def pinned(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        self._check_thread()
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        address = int(self._call("cuMemHostAlloc", nbytes, 0))
        self.allocations += 1
        self._pinned.append(address)
        memory = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))
        return memory.view(dtype).reshape(shape)

    def copy_to_device(self, address: int, array: Array) -> None:
        self._check_copy(array)
        self._call("cuMemcpyHtoDAsync", address, array.ctypes.data, array.nbytes, self._stream)

    def copy_to_host(self, array: Array, address: int) -> None:
        self._check_copy(array)
        self._call("cuMemcpyDtoHAsync", array.ctypes.data, address, array.nbytes, self._stream)

    def synchronise(self) -> None:
        self._check_thread()
        self.synchronisations += 1
        self._call("cuStreamSynchronize", self._stream)

    def record(self, job: Callable[[], None]) -> Callable[[], None]:
        self._check_thread()
        mode = self._cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", self._stream, mode)
        try:
            job()
        except BaseException:
            self._cuda.cuStreamEndCapture(self._stream)  # or the stream stays unusable; the first error is told
            raise
        graph = self._call("cuStreamEndCapture", self._stream)
        launched = self._call("cuGraphInstantiate", graph, 0)
        self._call("cuGraphDestroy", graph)
        self._graphs.append(launched)
        return lambda: self._call("cuGraphLaunch", launched, self._stream)

    def close(self) -> None:
        if not self._closes():
            return
        self._call("cuCtxPushCurrent", self._context)
        self._call("cuStreamSynchronize", self._stream)
        for graph in self._graphs:
            self._call("cuGraphExecDestroy", graph)
        for address in self._memory:
            self._call("cuMemFree", address)
        for address in self._pinned:
            self._call("cuMemFreeHost", address)
        self._call("cuStreamDestroy", self._stream)
        self._call("cuCtxPopCurrent")
        self._call("cuDevicePrimaryCtxRelease", self._number)

    def _call(self, name: str, *arguments: Any) -> Any:
        """The value that the driver returns beside its status, if any; DeviceError for every status but success."""
        status, *values = getattr(self._cuda, name)(*arguments)
        if status != self._cuda.CUresult.CUDA_SUCCESS:
            shown = ", ".join(str(a) for a in arguments if isinstance(a, int))
            raise DeviceError(f"the GPU's driver refuses {name}({shown}): {getattr(status, 'name', status)}")
        return values[0] if values else None


def open_cuda() -> CudaDevice:
    try:
        return CudaDevice(importlib.import_module("cuda.bindings.driver"))
    except (ImportError, OSError) as problem:
        raise DeviceError(
            f"cuda-python is installed but does not load ({problem}): install the driver's version"
        ) from None
