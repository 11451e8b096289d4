"""Memory of a GPU, page-locked host memory and one stream: all that the TensorRT backend asks of a CUDA package."""

from __future__ import annotations

import importlib
import importlib.util
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, Self

import numpy.typing as npt

from fusar_edge.errors import DeviceError, InputError, MissingExtraError

Array = npt.NDArray[Any]

ALIGNMENT = 256
"""Bytes. What cudaMalloc guarantees at least, and what TensorRT asks of every address (NvInferRuntime.h)."""


def aligned(nbytes: int) -> int:
    """`nbytes` rounded up to the alignment."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


class Device(Protocol):
    """One GPU, used by the thread that opened it: every call from another raises DeviceError, but `close`.

    `with device:` makes its CUDA context current for the calls inside; it nests. What fails raises DeviceError.
    """

    allocations: int
    """Of device and of page-locked memory, so far: it stands still after the warm-up."""
    synchronisations: int
    """How often the host has waited so far: once per token."""

    @property
    def stream(self) -> int:
        """Handle of the one stream on which everything runs, in order."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def alloc(self, nbytes: int) -> int:
        """Address of new device memory, a multiple of ALIGNMENT; what it holds is undefined."""
        ...

    def free(self, address: int) -> None:
        """Give back what `alloc` gave; nothing on the stream may use it any more."""
        ...

    def pinned(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Page-locked host memory, valid until `close`; what it holds is undefined."""
        ...

    def copy_to_device(self, address: int, array: Array) -> None:
        """Enqueue the copy of a contiguous part of `pinned` memory, which must not change before `synchronise`."""
        ...

    def copy_to_host(self, array: Array, address: int) -> None:
        """Enqueue the copy into a contiguous part of `pinned` memory, which holds it after `synchronise`."""
        ...

    def synchronise(self) -> None:
        """Wait for the stream."""
        ...

    def record(self, job: Callable[[], None]) -> Callable[[], None]:
        """What `job` enqueues, recorded as a CUDA graph and not done; each call of the result enqueues it once.

        It is valid until `close`. DeviceError where the package cannot record, or the driver refuses a part of it.
        """
        ...

    def close(self) -> None:
        """Give everything back, the memory of `pinned` arrays too; whatever else uses the context must have gone.

        Every later call raises DeviceError, but `close`. From another thread than the owner's it does nothing.
        """
        ...


class OwnedByThread:
    """What the implementations share: the owner thread and the counters."""

    def __init__(self) -> None:
        self._owner = threading.get_ident()
        self._closed = False
        self.allocations = 0
        self.synchronisations = 0

    def _closes(self) -> bool:
        """Whether `close` has something to do; once."""
        closes = not self._closed and threading.get_ident() == self._owner
        self._closed |= closes
        return closes

    def _check_thread(self) -> None:
        if self._closed:
            raise DeviceError("this GPU was given back by close(): open the bundle again")
        if threading.get_ident() != self._owner:
            raise DeviceError(
                "a GPU is used by the thread that opened it, and this is another one: open the bundle in the thread "
                "that runs it, one bundle per thread"
            )

    def _check_copy(self, array: Array) -> None:
        self._check_thread()
        assert array.flags.c_contiguous, "copies are of contiguous memory"


DEVICES = {
    "pycuda": "fusar_edge.runtime.device_pycuda:open_pycuda",
    "cuda-python": "fusar_edge.runtime.device_cuda:open_cuda",
    "numpy": "fusar_edge.runtime.device_numpy:open_numpy",
}
"""Kind -> module:function() -> Device, imported on use. `numpy` is no GPU: it is what tests run on."""

_PACKAGES = {"pycuda": "pycuda", "cuda-python": "cuda.bindings"}
_INSTALL = (
    "pip install 'fusar-edge[jetson]' (PyCUDA, compiled with the CUDA toolkit of JetPack), or pip install cuda-python"
)


def open_device(kind: str = "auto") -> Device:
    """`auto`: PyCUDA, else cuda-python, whichever is installed; neither: MissingExtraError. No GPU: DeviceError."""
    if kind == "auto":
        kind = next((name for name, package in _PACKAGES.items() if _installed(package)), "")
        if not kind:
            raise MissingExtraError(
                f"a TensorRT bundle needs PyCUDA or cuda-python, and neither is installed: {_INSTALL}"
            )
    if kind not in DEVICES:
        raise InputError(f"device {kind!r} is unknown; allowed: auto, {', '.join(DEVICES)}")
    package = _PACKAGES.get(kind)
    if package is not None:
        if not _installed(package):
            raise MissingExtraError(f"device {kind!r} needs a package that is not installed: {_INSTALL}")
        from fusar_edge.runtime.trt_api import check_driver

        check_driver(f"device {kind!r}")
    module, function = DEVICES[kind].split(":")
    opener: Callable[[], Device] = getattr(importlib.import_module(module), function)
    return opener()


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # the package around it is not there
        return False
