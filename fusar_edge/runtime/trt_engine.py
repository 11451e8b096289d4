"""A TensorRT plan, opened: what it takes and gives, and execution contexts whose memory is the caller's.

Names of TensorRT 8.6, 10.3 to 10.16 and 11; where they differ, the newest that is there is used.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fusar_edge.errors import BundleError, DeviceError
from fusar_edge.runtime.contract import Tensors
from fusar_edge.runtime.staging import Kind, Shape
from fusar_edge.runtime.trt_api import checked

_DTYPES = {"FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32, "INT64": np.int64}
"""Name of a trt.DataType -> NumPy's."""


class Engine:
    """One plan on the device. `listener` is the logger of `runtime`: what it heard goes into the messages."""

    def __init__(self, trt: Any, runtime: Any, listener: Any, path: Path) -> None:
        self.path = path
        self._trt, self._listener = trt, listener
        # Mapped, not read: on a Jetson the plan would be in the one memory twice while it is opened.
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
            self._engine = runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise BundleError(
                f"{path}: TensorRT {trt.__version__} cannot open it ({last_said(listener)}); build it on this device"
            )
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self.inputs = [n for n in names if self._engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        self.outputs = [n for n in names if n not in self.inputs]
        self.dtypes = {name: self._dtype(name) for name in names}

    @property
    def profiles(self) -> int:
        return int(self._engine.num_optimization_profiles)

    def largest(self, name: str, profile: int = 0) -> Shape:
        """Largest shape of an input in a profile."""
        return tuple(self._engine.get_tensor_profile_shape(name, profile)[2])

    def largest_inputs(self, *names: str) -> dict[str, Kind]:
        return {name: (self.largest(name), self.dtypes[name]) for name in names}

    @property
    def shares_profiles(self) -> bool:
        """TensorRT 10 and later: PROFILE_SHARING_0806 is on, and cannot be turned off."""
        return hasattr(self._trt, "ExecutionContextAllocationStrategy")

    @property
    def scratch_bytes(self) -> int:
        """Device memory of one context, whichever profile it uses."""
        size = "device_memory_size_v2" if hasattr(self._engine, "device_memory_size_v2") else "device_memory_size"
        return int(getattr(self._engine, size))

    def check(self, inputs: Tensors, outputs: Tensors) -> None:
        """BundleError where names or fixed dimensions are not those."""
        for kind, wanted, found in (("input", inputs, self.inputs), ("output", outputs, self.outputs)):
            if set(wanted) != set(found):
                raise BundleError(f"{self.path}: its {kind}s are {', '.join(found)}; they must be {', '.join(wanted)}")
            for name, shape in wanted.items():
                held = tuple(self._engine.get_tensor_shape(name))
                same = len(held) == len(shape) and all(
                    a is None or b == -1 or a == b for a, b in zip(shape, held, strict=True)
                )
                if not same:
                    raise BundleError(f"{self.path}: {kind} {name} is {held}; the bundle's settings say {shape}")

    def context(self, profile: int, stream: int) -> Context:
        """A new context that keeps to one profile; it runs once it was given scratch memory.

        Contexts share a profile where `shares_profiles`; TensorRT 8.6 wants one of its own for each.
        """
        what = f"an execution context of {self.path}"
        strategy = getattr(self._trt, "ExecutionContextAllocationStrategy", None)
        if strategy is None:  # TensorRT 8.6
            made = checked(self._engine.create_execution_context_without_device_memory(), what)
        else:
            made = checked(self._engine.create_execution_context(strategy.USER_MANAGED), what)
        if not made.set_optimization_profile_async(profile, stream):
            raise DeviceError(f"{self.path}: no profile {profile} for this context ({last_said(self._listener)})")
        return Context(made, self.path, self._listener, stream)

    def _dtype(self, name: str) -> np.dtype[Any]:
        dtype = self._engine.get_tensor_dtype(name).name
        if dtype not in _DTYPES:
            raise BundleError(f"{self.path}: tensor {name} has type {dtype}; allowed: {', '.join(_DTYPES)}")
        return np.dtype(_DTYPES[dtype])


class Context:
    """One execution context, with its stream. TensorRT is told only what changed since the last run."""

    def __init__(self, context: Any, path: Path, listener: Any, stream: int) -> None:
        self._context, self._path, self._listener, self._stream = context, path, listener, stream
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}

    def use_scratch(self, address: int, nbytes: int) -> None:
        """Memory for activations, in use while the context runs; contexts of one stream may share it."""
        if hasattr(self._context, "set_device_memory"):
            self._context.set_device_memory(address, nbytes)
        else:  # TensorRT 8.6
            self._context.device_memory = address

    def run(self, shapes: Mapping[str, Shape], addresses: Mapping[str, int]) -> None:
        """Enqueue the engine: shapes of all inputs, device addresses of all inputs and outputs.

        DeviceError names the tensor that TensorRT refuses.
        """
        for name, address in addresses.items():
            if self._addresses.get(name) != address:
                self._accepted(self._context.set_tensor_address(name, address), f"address {address:#x} of {name}")
                self._addresses[name] = address
        changed = {name: shape for name, shape in shapes.items() if self._shapes.get(name) != shape}
        for name, shape in changed.items():
            self._accepted(self._context.set_input_shape(name, shape), f"shape {shape} of {name}")
            self._shapes[name] = shape
        if changed:
            self._infer_shapes()
        self._accepted(self._context.execute_async_v3(self._stream), "to run")

    def _infer_shapes(self) -> None:
        try:
            missing = self._context.infer_shapes()
        except RuntimeError as problem:
            raise DeviceError(f"{self._path}: TensorRT cannot tell the outputs' shapes: {problem}") from None
        self._accepted(not missing, f"to run without the shape or address of {', '.join(missing)}")

    def _accepted(self, done: bool, what: str) -> None:
        if not done:
            raise DeviceError(f"{self._path}: TensorRT refuses {what} ({last_said(self._listener)})")


def last_said(listener: Any) -> str:
    """TensorRT's last words, for a message."""
    heard = listener.errors or listener.said
    return heard[-1].strip() if heard else "it gave no reason"
