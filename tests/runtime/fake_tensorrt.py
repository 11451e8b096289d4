"""TensorRT's Python API, as far as the runtime uses it, over ONNX Runtime and the NumPy device.

A plan is a line of JSON (its optimisation profiles) and an ONNX graph. What real TensorRT refuses is refused: a shape
outside the profile, an address that is null or not aligned, a profile in use by another context, no scratch memory,
another stream. Work happens where a GPU would do it: when the stream is waited for, at the addresses that were bound.
"""

from __future__ import annotations

import json
import weakref
from collections import Counter
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime

from fusar_edge.engines.profiles import Profile, decoder_profiles, vision_profiles
from fusar_edge.runtime.bundle import DECODER, PLANS, TOKENIZER, VISION, Bundle, PlanFacts, open_bundle, seal_bundle
from fusar_edge.runtime.device_numpy import NumpyDevice

SCRATCH_BYTES = {"vision": 5000, "decoder": 3000}
_NAMES = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int32)": "INT32", "tensor(int64)": "INT64"}


class Logger:
    class Severity(Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    def log(self, severity: Severity, message: str) -> None: ...


class FakeTensorrt:
    """Stands in for the module. `version` decides which names exist."""

    ILogger = Logger
    DataType = Enum("DataType", "FLOAT HALF INT8 INT32 BOOL INT64")
    TensorIOMode = Enum("TensorIOMode", "NONE INPUT OUTPUT")

    def __init__(self, device: NumpyDevice, version: str = "10.16.1.11") -> None:
        self.device, self.__version__ = device, version
        self.major = int(version.split(".")[0])
        self.opened: list[weakref.ref[_Engine]] = []  # weak: as with TensorRT, who drops an engine ends it
        self.ended: list[str] = []
        """Engines that have gone, and `closed` where the device was closed."""
        close = device.close

        def closed() -> None:
            self.ended.append("closed")
            close()

        device.close = closed  # type: ignore[method-assign]  # to note the order
        if self.major >= 10:
            self.ExecutionContextAllocationStrategy = Enum("Strategy", "STATIC ON_PROFILE_CHANGE USER_MANAGED")

    @property
    def engines(self) -> list[_Engine]:
        return [engine for engine in (reference() for reference in self.opened) if engine is not None]

    def Runtime(self, logger: Logger) -> _Runtime:
        return _Runtime(self, logger)


class _Runtime:
    def __init__(self, trt: FakeTensorrt, logger: Logger) -> None:
        self.trt, self.logger = trt, logger

    def deserialize_cuda_engine(self, plan: Any) -> _Engine | None:
        head, _, graph = bytes(plan).partition(b"\n")
        try:
            engine = _Engine(self.trt, self.logger, json.loads(head), graph)
        except ValueError:
            self.logger.log(Logger.Severity.ERROR, "Magic tag does not match")
            return None
        self.trt.opened.append(weakref.ref(engine))
        weakref.finalize(engine, self.trt.ended.append, engine.name)
        return engine


class _Engine:
    def __init__(self, trt: FakeTensorrt, logger: Logger, head: dict[str, Any], graph: bytes) -> None:
        self.trt, self.logger = trt, logger
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.profiles: list[Profile] = head["profiles"]
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.outputs = {value.name: value for value in self.session.get_outputs()}
        self.name: str = head["name"]
        self.made: list[weakref.ref[_Context]] = []
        scratch = SCRATCH_BYTES[self.name]
        self.device_memory_size_v2 = scratch
        if trt.major < 11:
            self.device_memory_size = scratch
        if trt.major < 10:
            del self.device_memory_size_v2

    @property
    def num_io_tensors(self) -> int:
        return len(self.inputs) + len(self.outputs)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def get_tensor_name(self, index: int) -> str:
        return [*self.inputs, *self.outputs][index]

    def get_tensor_mode(self, name: str) -> Any:
        return self.trt.TensorIOMode.INPUT if name in self.inputs else self.trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return self.trt.DataType[_NAMES[{**self.inputs, **self.outputs}[name].type]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        shape = {**self.inputs, **self.outputs}[name].shape
        return tuple(size if isinstance(size, int) else -1 for size in shape)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self.profiles[profile][name]]

    def create_execution_context(self, strategy: Any = None) -> _Context:
        assert self.trt.major >= 10, "8.6 would allocate by itself"
        assert strategy is self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        return self._context()

    def __getattr__(self, name: str) -> Any:
        if name == "create_execution_context_without_device_memory" and self.trt.major < 11:
            return self._context
        raise AttributeError(name)

    @property
    def contexts(self) -> list[_Context]:
        return [context for context in (reference() for reference in self.made) if context is not None]

    def _context(self) -> _Context:
        context = _Context(self)
        self.made.append(weakref.ref(context))
        return context


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self.engine, self.device = engine, engine.trt.device
        self.profile = -1 if engine.contexts else 0
        self.told: Counter[str] = Counter()
        self.scratch: tuple[int, int] | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.runs: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        if name == "set_device_memory" and self.engine.trt.major >= 10:
            return self._set_device_memory
        raise AttributeError(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "device_memory":
            assert self.engine.trt.major < 11, "11 has no such property"
            return self._set_device_memory(value, self.engine.device_memory_size)
        return super().__setattr__(name, value)

    def _set_device_memory(self, address: int, nbytes: int) -> None:
        self.scratch = (address, nbytes)

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        others = [context.profile for context in self.engine.contexts if context is not self]
        taken = profile in others and self.engine.trt.major < 10
        if taken or not 0 <= profile < len(self.engine.profiles) or stream != self.device.stream:
            return self._refused(f"profile {profile} cannot be set")
        self.profile = profile
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if name not in self.engine.inputs:
            return self._refused(f"{name} is no input")
        least, _, most = self.engine.profiles[self.profile][name]
        if len(shape) != len(most) or any(not a <= b <= c for a, b, c in zip(least, shape, most, strict=True)):
            return self._refused(f"{shape} of {name} is outside profile {self.profile}: {least} to {most}")
        self.shapes[name] = tuple(shape)
        self.told[f"shape of {name}"] += 1
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        if name not in self.engine.inputs and name not in self.engine.outputs:
            return self._refused(f"{name} is no tensor")
        if address % 256:
            return self._refused(f"{address:#x} is not aligned to 256 bytes")
        self.addresses[name] = address
        self.told[f"address of {name}"] += 1
        return True

    def infer_shapes(self) -> list[str]:
        return [name for name in self.engine.inputs if name not in self.shapes]

    def execute_async_v3(self, stream: int) -> bool:
        tensors = {*self.engine.inputs, *self.engine.outputs}
        missing = [*self.infer_shapes(), *(name for name in tensors if not self.addresses.get(name))]
        if missing or self.scratch is None or stream != self.device.stream:
            return self._refused(f"not ready: {missing}, scratch {self.scratch}, stream {stream}")
        self.runs[str(self.shapes.get("past", self.shapes.get("pixels")))] += 1
        shapes, addresses, scratch = dict(self.shapes), dict(self.addresses), self.scratch
        self.device.enqueue(lambda: self._work(shapes, addresses, scratch))
        return True

    def _work(self, shapes: dict[str, Any], addresses: dict[str, int], scratch: tuple[int, int]) -> None:
        wanted = getattr(self.engine, "device_memory_size_v2", None) or self.engine.device_memory_size
        assert scratch[1] >= wanted, "too little scratch memory"
        self.device.view(*scratch)[:] = 0xAB
        feed = {}
        for name, value in self.engine.inputs.items():
            dtype = _dtype(value.type)
            nbytes = int(np.prod(shapes[name])) * dtype.itemsize
            memory = self.device.view(addresses[name], nbytes)
            feed[name] = memory.view(dtype).reshape(shapes[name]).copy()
        for name, result in zip(self.engine.outputs, self.engine.session.run(None, feed), strict=True):
            self.device.view(addresses[name], result.nbytes)[:] = result.reshape(-1).view(np.uint8)

    def _refused(self, why: str) -> bool:
        self.engine.logger.log(Logger.Severity.ERROR, why)
        return False


def _dtype(name: str) -> np.dtype:
    kinds = {"FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32, "INT64": np.int64}
    return np.dtype(kinds[_NAMES[name]])


def write_plan(path: Path, name: str, graph: Path, profiles: list[Profile]) -> None:
    path.write_bytes(json.dumps({"name": name, "profiles": profiles}).encode() + b"\n" + graph.read_bytes())


def write_trt_bundle(folder: Path, source: Bundle, prefill_tokens: int = 128, **facts: Any) -> Bundle:
    """A sealed bundle with fake plans of `source`'s graphs; batch of vision 1 to 2."""
    folder.mkdir(parents=True)
    cache = source.settings.context_tokens
    profiles = {
        VISION: vision_profiles(source.settings, 2),
        DECODER: decoder_profiles(source.settings, prefill_tokens, cache),
    }
    for graph, plan in PLANS.items():
        write_plan(folder / plan, Path(graph).stem, source.file(graph), profiles[graph])
    (folder / TOKENIZER).write_bytes(source.file(TOKENIZER).read_bytes())
    plan_facts = {
        "tensorrt": "10.16.1.11",
        "compute_capability": "8.7",
        "gpu": "Orin",
        "prefill_tokens": prefill_tokens,
        "vision_batch": 2,
        "kv_dtype": "float32",
    }
    settings = msgspec.structs.replace(source.settings, engine="tensorrt", plan=PlanFacts(**{**plan_facts, **facts}))
    seal_bundle(folder, settings, prompts=source.prompts, radiometry=source.radiometry)
    return open_bundle(folder)
