"""A part of a graph, and then the whole graph, with its weights in the data file: in FP32, or rewritten to INT8.

The rewriting is that of `calibrate` (fusar_edge.calib.qdq). It is done twice: part by part while the weights are
there, and at the end for the whole graph, where every constant is known by name and none is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto

from fusar_edge.calib.outliers import Split
from fusar_edge.calib.qdq import Linear, QdqWriter, gather_in_half
from fusar_edge.export.lean.data_file import DataFile

Array = npt.NDArray[Any]


class _Streamed:
    """Constants of a part: float weights that are in memory, and what is made of them goes to the file."""

    def __init__(self, tensors: Mapping[str, Array], data: DataFile) -> None:
        self.tensors, self.data = tensors, data

    def weight(self, name: str) -> Array:
        return self.tensors[name]

    def put(self, name: str, make: Callable[[], Array]) -> str:
        self.data.put(name, np.asarray(make()))
        return name


class _Written:
    """Constants that are in the file already."""

    def weight(self, name: str) -> Array:
        raise AssertionError(f"{name} is asked for after its layer was written")

    def put(self, name: str, make: Callable[[], Array]) -> str:
        return name


def written_part(
    nodes: Iterable[NodeProto],
    tensors: Mapping[str, Array],
    data: DataFile,
    layers: list[Linear],
    ranges: Mapping[str, float],
    splits: Mapping[str, Split],
) -> list[NodeProto]:
    """The nodes with `layers` in INT8; every constant that they read is in the file afterwards."""
    copies = [_copy(node) for node in nodes]
    result = QdqWriter(_Streamed(tensors, data), ranges, splits).rewritten(copies, layers)
    for name in dict.fromkeys(name for node in result for name in node.input):
        if name in tensors and name not in data.entries:
            data.put(name, tensors[name])
    return result


def written_graph(
    skeleton: onnx.ModelProto,
    data: DataFile,
    layers: list[Linear],
    ranges: Mapping[str, float],
    splits: Mapping[str, Split],
    half: list[str],
) -> onnx.ModelProto:
    """The whole graph; its constants say where in the file they are. `half`: embeddings that are FP16."""
    result = onnx.ModelProto()
    result.CopyFrom(skeleton)
    nodes = QdqWriter(_Written(), ranges, splits).rewritten(result.graph.node, layers)
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    gather_in_half(result, half)
    read = dict.fromkeys(name for node in result.graph.node for name in node.input)
    del result.graph.initializer[:]
    result.graph.initializer.extend(data.protos(read))
    return result


def held_elsewhere(names: Iterable[str], tensors: Mapping[str, Array]) -> list[TensorProto]:
    """Declarations of float constants that a session is handed in memory."""
    found = []
    for name in names:
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=tensors[name].shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "in memory"), ("offset", "0"), ("length", str(tensors[name].nbytes))):
            tensor.external_data.add(key=key, value=value)
        found.append(tensor)
    return found


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy
