"""The builder's half of TensorRT's Python API, in front of the runtime's half in tests/runtime/fake_tensorrt.py.

What it builds is what the fake runtime opens, so that `build` can be followed to an answer without a GPU.
"""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
from runtime.fake_tensorrt import FakeTensorrt

from fusar_edge.runtime.device_numpy import NumpyDevice

REPORT = '{"Layers": [{"Name": "a", "Inputs": [{"Format/Datatype": "Int8"}]}, {"Name": "b", "Inputs": []}]}'


class _Plan(bytes):
    @property
    def nbytes(self) -> int:
        return len(self)


class FakeTensorrtWithBuilder(FakeTensorrt):
    """Stands in for the module `tensorrt`. `refused`: operators that its parser does not know."""

    ProfilingVerbosity = Enum("ProfilingVerbosity", "DETAILED")
    MemoryPoolType = Enum("MemoryPoolType", "WORKSPACE")
    LayerInformationFormat = Enum("LayerInformationFormat", "JSON")
    NetworkDefinitionCreationFlag = Enum("NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": 3}, type=int)

    def __init__(self, refused: tuple[str, ...] = ()) -> None:
        super().__init__(NumpyDevice())
        self.refused = refused
        self.workspaces: list[int] = []

    def Builder(self, logger: Any) -> _Builder:
        return _Builder(self)

    def OnnxParser(self, network: Any, logger: Any) -> _Parser:
        return _Parser(self, network)

    def Runtime(self, logger: Any) -> Any:
        runtime = super().Runtime(logger)
        deserialised = runtime.deserialize_cuda_engine

        def with_inspector(plan: Any) -> Any:
            engine = deserialised(plan)
            engine.create_engine_inspector = lambda: SimpleNamespace(get_engine_information=lambda kind: REPORT)
            return engine

        runtime.deserialize_cuda_engine = with_inspector
        return runtime


class _Builder:
    def __init__(self, trt: FakeTensorrtWithBuilder) -> None:
        self.trt = trt

    def create_network(self, flags: int) -> Any:
        assert flags == 1 << 3, "strongly typed alone"
        return SimpleNamespace(num_layers=0, num_inputs=0, inputs=[], path=None)

    def create_optimization_profile(self) -> Any:
        shapes: dict[str, Any] = {}
        return SimpleNamespace(shapes=shapes, set_shape=lambda name, *three: shapes.update({name: three}))

    def create_builder_config(self) -> Any:
        profiles: list[Any] = []
        config = SimpleNamespace(profiles=profiles)
        config.add_optimization_profile = lambda made: (profiles.append(made.shapes), len(profiles) - 1)[1]
        config.set_memory_pool_limit = lambda pool, nbytes: self.trt.workspaces.append(nbytes)
        config.create_timing_cache = lambda data: data
        config.set_timing_cache = lambda cache, ignore_mismatch: True
        config.get_timing_cache = lambda: SimpleNamespace(serialize=lambda: b"timings")
        return config

    def build_serialized_network(self, network: Any, config: Any) -> _Plan:
        head = {"name": Path(network.path).stem, "profiles": config.profiles}
        return _Plan(json.dumps(head).encode() + b"\n" + Path(network.path).read_bytes())


class _Parser:
    def __init__(self, trt: FakeTensorrtWithBuilder, network: Any) -> None:
        self.trt, self.network, self.errors = trt, network, []

    @property
    def num_errors(self) -> int:
        return len(self.errors)

    def get_error(self, index: int) -> Any:
        node = self.errors[index]
        return SimpleNamespace(
            node_name=lambda: node.name, node_operator=lambda: node.op_type, desc=lambda: "no importer"
        )

    def parse_from_file(self, path: str) -> bool:
        graph = onnx.load(path).graph
        self.errors = [node for node in graph.node if node.op_type in self.trt.refused]
        types = {onnx.TensorProto.FLOAT16: self.trt.DataType.HALF}
        inputs = [
            SimpleNamespace(name=value.name, dtype=types.get(value.type.tensor_type.elem_type, self.trt.DataType.FLOAT))
            for value in graph.input
        ]
        self.network.path, self.network.num_layers = path, len(graph.node)
        self.network.num_inputs, self.network.get_input = len(inputs), inputs.__getitem__
        return not self.errors
