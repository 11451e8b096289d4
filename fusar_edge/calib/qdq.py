"""Explicit symmetric Q/DQ: FP32 ONNX graph + ranges -> INT8 ONNX graph for TensorRT 8.6 to 11 and ONNX Runtime.

Weights are stored as INT8 and dequantised per output channel; the activation in front of a linear passes
QuantizeLinear and DequantizeLinear with one scale per tensor. Everything else stays as it was: softmax, norms, the
products inside attention, and biases (TensorRT refuses INT32 biases behind DequantizeLinear).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from fusar_edge.calib.outliers import Split, float_product, without_rows
from fusar_edge.errors import RecipeError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

SMALLEST_WIDTH = 16
"""A MatMul with a constant narrower than this is no layer but geometry (rotary angles)."""
BRANCH = (".adapter_a", ".adapter_b")
"""Ends of the names of an adapter's nodes (fusar_edge.model.adapted)."""


@dataclass(frozen=True)
class Linear:
    """A node that multiplies an activation by a constant weight."""

    name: str
    """Node name; what the patterns of a recipe are matched with."""
    op: str
    activation: str
    weight: str
    axis: int
    """Axis of the weight that runs over output channels."""


def linears(model: ModelProto) -> list[Linear]:
    """MatMul and Gemm whose second input is a constant matrix, and Conv with a constant kernel, in graph order.

    Not the branch of an adapter, of any rank: its weights are exchanged, and INT8 codes would be of one adapter.
    """
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type not in ("MatMul", "Gemm", "Conv") or node.input[1] not in shapes:
            continue
        shape = shapes[node.input[1]]
        if node.name.endswith(BRANCH):
            continue
        if node.op_type != "Conv" and (len(shape) != 2 or min(shape) < SMALLEST_WIDTH):
            continue
        rows = node.op_type == "Conv" or any(a.name == "transB" and a.i for a in node.attribute)
        found.append(Linear(node.name, node.op_type, node.input[0], node.input[1], 0 if rows else 1))
    return found


def kept_layers(layers: list[Linear], keep: Mapping[str, str], names: str) -> dict[str, str]:
    """Layer name -> reason, for the layers that the recipe keeps in higher precision.

    Raises RecipeError when one pattern matches everything: `names` says whose layers these are.
    """
    kept = {}
    for layer in layers:
        for pattern, reason in keep.items():
            if fnmatchcase(layer.name, pattern):
                kept[layer.name] = reason
                break
    if layers and len(kept) == len(layers):
        raise RecipeError(f"[keep] keeps all {len(layers)} layers of {names}: nothing is left to become INT8")
    return kept


def reaches(model: ModelProto, name: str) -> set[str]:
    """Names of all tensors that depend on tensor `name`, itself included."""
    seen = {name}
    for node in model.graph.node:  # ONNX keeps nodes in topological order
        if seen & set(node.input):
            seen |= set(node.output)
    return seen


BLOCK_VALUES = 1 << 24
"""Values that `int8_weight` works on at a time: the head of a 7B model is 2.2 GB in float32."""


def int8_weight(weight: npt.NDArray[np.float32], axis: int) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Symmetric codes in -127..127 and the scale of each channel along `axis`; a channel of zeros has scale 1."""
    if weight.ndim == 2 and weight.T.flags.c_contiguous and not weight.flags.c_contiguous:
        codes, scale = int8_weight(weight.T, 1 - axis)  # along its memory
        return codes.T, scale
    channels = weight.shape[axis]
    codes, scale = np.empty(weight.shape, np.int8), np.empty(channels, np.float32)
    step = max(1, BLOCK_VALUES * channels // max(1, weight.size))
    for start in range(0, channels, step):
        block = [slice(None)] * weight.ndim
        block[axis] = slice(start, start + step)
        part = weight[tuple(block)]
        largest = np.abs(part).max(axis=tuple(i for i in range(weight.ndim) if i != axis))
        scale[start : start + step] = np.where(largest > 0, largest / 127, 1)
        divisor = scale[start : start + step].reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
        codes[tuple(block)] = np.clip(np.rint(part / divisor), -127, 127)
    return codes, scale


class Constants(Protocol):
    """Where the writer finds float weights, and leaves what it makes of them."""

    def weight(self, name: str) -> npt.NDArray[np.float32]:
        """A float weight of the graph, in the graph's layout."""
        ...

    def put(self, name: str, make: Callable[[], npt.NDArray[Any]]) -> str:
        """Keep a constant of the new graph; returns its name. `make` is called only where the value is needed."""
        ...


class GraphConstants:
    """Those of a graph that holds its weights."""

    def __init__(self, model: ModelProto) -> None:
        self.graph = model.graph
        self.tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    def weight(self, name: str) -> npt.NDArray[np.float32]:
        from onnx import numpy_helper

        return numpy_helper.to_array(self.tensors[name])

    def put(self, name: str, make: Callable[[], npt.NDArray[Any]]) -> str:
        from onnx import numpy_helper

        self.graph.initializer.append(numpy_helper.from_array(np.asarray(make()), name))
        return name


def quantised(
    model: ModelProto, layers: list[Linear], ranges: Mapping[str, float], splits: Mapping[str, Split] | None = None
) -> ModelProto:
    """A copy of `model` with Q/DQ around `layers`. `ranges`: activation name -> |x| that becomes 127.

    `splits`: layer name -> its input channels that are multiplied in float beside the INT8 product.
    """
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(model)
    nodes = QdqWriter(GraphConstants(result), ranges, splits or {}).rewritten(result.graph.node, layers)
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    _drop_unused_initialisers(result)
    onnx.checker.check_model(result, full_check=False)
    return result


class QdqWriter:
    """Rewrites nodes. Each constant and node is made once; nodes wait in `_take` until their first reader is placed."""

    def __init__(self, constants: Constants, ranges: Mapping[str, float], splits: Mapping[str, Split]) -> None:
        self.constants, self.ranges, self.splits = constants, ranges, splits
        self.done: dict[tuple[str, int], str] = {}
        self.pending: list[NodeProto] = []

    def rewritten(self, nodes: Iterable[NodeProto], layers: Iterable[Linear]) -> list[NodeProto]:
        """The nodes, those of `layers` changed in place, with what they need before and behind them."""
        chosen = {layer.name: layer for layer in layers}
        result: list[NodeProto] = []
        for node in nodes:
            layer, beside = chosen.get(node.name), []
            if layer is not None:
                weight, split = node.input[1], self.splits.get(layer.name)
                if split is not None:
                    beside = float_product(node, split, self.constants)
                node.input[0] = self._activation(layer)
                node.input[1] = self._weight(node.name if split else "", weight, layer.axis, split)
            result += [*self._take(), node, *beside]
        return result

    def _take(self) -> list[NodeProto]:
        nodes, self.pending = self.pending, []
        return nodes

    def _activation(self, layer: Linear) -> str:
        """A Q/DQ pair per layer, also where layers read one tensor, each with a zero point of its own.

        ONNX Runtime 1.32 fuses a MatMul only where its QuantizeLinear has no other reader (13 of 43 linears of the tiny
        decoder with a shared one, 43 of 43 with this), and it merges pairs that are equal to the name of the constants.
        TensorRT merges them itself.
        """
        from onnx import helper

        split = self.splits.get(layer.name)
        scale = f"{layer.activation}_scale" if split is None else f"{layer.name}_input_scale"
        if (scale, -1) not in self.done:
            largest = self.ranges[layer.activation] if split is None else split.largest
            self.done[scale, -1] = self.constants.put(scale, lambda: np.asarray(largest / 127, np.float32))
        zero = self.constants.put(f"{layer.name}_input_zero", lambda: np.zeros((), np.int8))
        codes, result = f"{layer.name}_input_int8", f"{layer.name}_input"
        self.pending += [
            helper.make_node("QuantizeLinear", [layer.activation, scale, zero], [codes], f"{layer.name}_quantise"),
            helper.make_node("DequantizeLinear", [codes, scale, zero], [result], f"{layer.name}_dequantise"),
        ]
        return result

    def _weight(self, layer: str, name: str, axis: int, split: Split | None) -> str:
        """Of a layer with outliers, the weight without their rows is its own."""
        from onnx import helper

        own = name if split is None else f"{layer}.inliers.weight"
        if (own, axis) not in self.done:

            @functools.cache
            def pair() -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
                weight = self.constants.weight(name)
                return int8_weight(weight if split is None else without_rows(weight, split), axis)

            base = f"{own}_axis{axis}"
            inputs = [
                self.constants.put(f"{base}_int8", lambda: pair()[0]),
                self.constants.put(f"{base}_scale", lambda: pair()[1]),
                self.constants.put(f"{base}_zero", lambda: np.zeros_like(pair()[1], np.int8)),
            ]
            node = helper.make_node(
                "DequantizeLinear", inputs, [f"{base}_dequantised"], f"{base}_dequantise", axis=axis
            )
            self.pending.append(node)
            self.done[own, axis] = f"{base}_dequantised"
        return self.done[own, axis]


def half_embeddings(model: ModelProto) -> list[str]:
    """Store in FP16 the float tables that are read by Gather alone, in place; a Cast follows each Gather.

    Rows of an INT8 table cannot be gathered: TensorRT allows an INT8 constant in front of DequantizeLinear only, and
    DequantizeLinear before Gather makes ONNX Runtime expand the whole table at each step (0.22 ms for 6000 x 256).
    Returns the names of the tables.
    """
    from onnx import numpy_helper

    tables = embedding_tables(model)
    for tensor in model.graph.initializer:
        if tensor.name in tables:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    gather_in_half(model, tables)
    return tables


def embedding_tables(model: ModelProto) -> list[str]:
    """Float tables that are read by Gather alone."""
    from onnx import TensorProto

    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    tables = []
    for tensor in model.graph.initializer:
        users = readers.get(tensor.name, [])
        wide = len(tensor.dims) == 2 and min(tensor.dims) >= SMALLEST_WIDTH and tensor.data_type == TensorProto.FLOAT
        if wide and users and all(n.op_type == "Gather" and n.input[0] == tensor.name for n in users):
            tables.append(tensor.name)
    return tables


def gather_in_half(model: ModelProto, tables: Collection[str]) -> None:
    """A Cast to float behind each Gather of the tables, which are FP16."""
    from onnx import TensorProto, helper

    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type == "Gather" and node.input[0] in tables:
            half = f"{node.output[0]}_half"
            cast = helper.make_node("Cast", [half], [node.output[0]], f"{node.name}_float", to=TensorProto.FLOAT)
            node.output[0] = half
            nodes.append(cast)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _drop_unused_initialisers(model: ModelProto) -> None:
    used = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def save_graph(model: ModelProto, path: Path, largest_bytes: int = 1_800_000_000) -> None:
    """Write the graph; weights go to `NAME.onnx.data` beside it where one protobuf file cannot hold them (2 GB)."""
    import onnx

    large = model.ByteSize() > largest_bytes
    onnx.save(model, path, save_as_external_data=large, location=f"{path.name}.data" if large else None)
