"""TensorRT's door: the only module that imports it, and what differs between TensorRT 8.6, 10.3 to 10.16 and 11.

Rules that hold everywhere behind it: enum members by name, since their numbers moved between 10 and 11; every call that
returns an object may return None; a `Runtime` made without a driver ends the process with a segmentation fault, so the
driver is asked first, through ctypes.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fusar_edge.errors import DeviceError, MissingExtraError

PACKAGE = "tensorrt"
DRIVER = "libcuda.so.1"
OLDEST = (8, 6)
"""Oldest TensorRT whose API the code is written for."""

# Numbers of the driver's C ABI (cuda.h, CUdevice_attribute), which never change; not TensorRT's.
_MAJOR, _MINOR = 75, 76


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """The first GPU that this process may use."""

    name: str
    """As the driver says it, such as `Orin` or `NVIDIA H200`."""
    compute_capability: str
    """`8.7` is Orin."""
    memory_bytes: int
    """All of it; on a Jetson the processor's memory too."""
    free_bytes: int
    """Free now, beside an idle CUDA context of this process."""
    driver: str
    """CUDA version that the driver speaks, such as `13.0`."""


class _CudaError(Exception):
    """A driver call that did not return CUDA_SUCCESS."""


def driver_problem() -> str | None:
    """Why no CUDA device can be used here, in words; None where one can. Never raises."""
    try:
        cuda = _driver()
        count = ctypes.c_int(0)
        _call(cuda, "cuDeviceGetCount", ctypes.byref(count))
    except OSError:
        return f"the NVIDIA driver is not installed ({DRIVER} cannot be loaded)"
    except (AttributeError, _CudaError) as problem:
        return f"the NVIDIA driver does not start ({problem})"
    return None if count.value else "the NVIDIA driver finds no GPU"


def check_driver(what: str = "TensorRT") -> None:
    """DeviceError, with the remedy, where no CUDA device can be used."""
    problem = driver_problem()
    if problem is not None:
        raise DeviceError(
            f"{what} needs an NVIDIA GPU: {problem}. Run this on the device itself, with its driver loaded "
            '(`nvidia-smi` shows it), or use a spec with engine = "onnxruntime", such as `cpu`'
        )


def device_facts() -> DeviceFacts:
    """Ask the driver about device 0. Holds its primary context for the question alone. DeviceError without a driver."""
    check_driver()
    cuda, device, text = _driver(), ctypes.c_int(0), ctypes.create_string_buffer(256)
    total, free, version = ctypes.c_size_t(0), ctypes.c_size_t(0), ctypes.c_int(0)
    context = ctypes.c_void_p()
    try:
        _call(cuda, "cuDeviceGet", ctypes.byref(device), 0)
        _call(cuda, "cuDeviceGetName", text, len(text), device)
        _call(cuda, "cuDriverGetVersion", ctypes.byref(version))
        _call(cuda, "cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        try:
            _call(cuda, "cuCtxPushCurrent_v2", context)
            try:
                _call(cuda, "cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
            finally:
                _call(cuda, "cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
        finally:
            _call(cuda, "cuDevicePrimaryCtxRelease_v2", device)
        capability = f"{_attribute(cuda, _MAJOR, device)}.{_attribute(cuda, _MINOR, device)}"
    except (AttributeError, _CudaError) as problem:
        raise DeviceError(
            f"the NVIDIA driver does not describe its first GPU ({problem}); restart the device"
        ) from None
    name, spoken = text.value.decode(errors="replace"), f"{version.value // 1000}.{version.value % 1000 // 10}"
    return DeviceFacts(name, capability, total.value, free.value, spoken)


def _driver() -> Any:
    """The driver's library after cuInit. OSError where it is absent, _CudaError where it does not start."""
    cuda = ctypes.CDLL(DRIVER)
    _call(cuda, "cuInit", 0)
    return cuda


def _call(cuda: Any, name: str, *arguments: Any) -> None:
    status = getattr(cuda, name)(*arguments)
    if status:
        raise _CudaError(f"{name}: {_status_name(cuda, status)}")


def _status_name(cuda: Any, status: int) -> str:
    text = ctypes.c_char_p()
    if not hasattr(cuda, "cuGetErrorName") or cuda.cuGetErrorName(status, ctypes.byref(text)) or not text.value:
        return f"CUDA error {status}"
    return text.value.decode(errors="replace")


def _attribute(cuda: Any, number: int, device: ctypes.c_int) -> int:
    value = ctypes.c_int(0)
    _call(cuda, "cuDeviceGetAttribute", ctypes.byref(value), number, device)
    return value.value


def open_tensorrt(need_driver: bool = True) -> Any:
    """The module `tensorrt`. `need_driver=False` is for its names alone: make no Runtime or Builder then.

    DeviceError without a driver or with a TensorRT that is too old or does not load; MissingExtraError without one.
    """
    if need_driver:
        check_driver()
    if importlib.util.find_spec(PACKAGE) is None:
        raise MissingExtraError(
            "TensorRT for Python is not installed. On a Jetson it comes with JetPack: `sudo apt install "
            "python3-libnvinfer`, and make the environment with `python3 -m venv --system-site-packages`. Elsewhere: "
            "`pip install tensorrt-cu13`"
        )
    try:
        trt = importlib.import_module(PACKAGE)
    except (ImportError, OSError) as problem:
        raise DeviceError(f"TensorRT for Python is installed but does not load ({problem}): install it again") from None
    if version_of(trt) < OLDEST:
        raise DeviceError(f"TensorRT {trt.__version__} is too old: install {'.'.join(map(str, OLDEST))} or later")
    return trt


def version_of(trt: Any) -> tuple[int, int]:
    """(major, minor) of a binding module."""
    major, minor = str(trt.__version__).split(".")[:2]
    return int(major), int(minor)


def checked(value: Any, what: str) -> Any:
    """`value`; DeviceError that says what TensorRT did not make, where it is None."""
    if value is None:
        raise DeviceError(f"TensorRT could not make {what}: out of memory, or a driver that is too old for it")
    return value


def constructed(make: Callable[..., Any], what: str, *arguments: Any) -> Any:
    """`make(*arguments)`. The bindings raise TypeError where the library's factory returns nothing."""
    try:
        return checked(make(*arguments), what)
    except TypeError as problem:
        if "nullptr" not in str(problem):
            raise
        return checked(None, what)


def Listener(trt: Any, hear: Callable[[str], None] | None = None) -> Any:
    """A logger that keeps what TensorRT says: `.errors` and, warnings among them, `.said`, newest last.

    `hear` is told everything, verbose messages too.
    """
    kept = 64

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.said: list[str] = []
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if hear is not None:
                hear(message)
            failed = severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR)
            if failed:
                self.errors = [*self.errors, message][-kept:]
            if failed or severity == trt.ILogger.Severity.WARNING:
                self.said = [*self.said, message][-kept:]

    return Logger()


def is_strongly_typed(trt: Any) -> bool:
    """Whether networks keep the types of their graph; TensorRT 8.6 chooses them, by builder flags."""
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def network_flags(trt: Any) -> int:
    """Bits of `create_network`: explicit batch and strongly typed, each where the version has it (11 has no first)."""
    names = trt.NetworkDefinitionCreationFlag
    found = (getattr(names, name, None) for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED"))
    return sum(1 << int(flag) for flag in found if flag is not None)


def parser_error_text(error: Any) -> str:
    """Node, operator and reason of one error of the ONNX parser; 8.6 knows the node's number alone."""
    if hasattr(error, "node_name"):
        return f"node {error.node_name() or '?'} ({error.node_operator() or '?'}): {error.desc()}"
    return f"node number {error.node()}: {error.desc()}"
