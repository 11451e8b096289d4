"""Half precision where it is harmless, written into the graph: attention, the KV cache, and linears that are not INT8.

TensorRT builds strongly typed: what is to run in FP16 must be FP16 in the graph. Products of activations (scores, and
probabilities times values) take FP16 inputs and give their result back in FP32, so that softmax, norms, residuals and
rotary angles stay as they are; `past` and `new` become FP16, which halves the KV cache. Plain FP16 everywhere breaks
this vision tower (cosine 0.14, TensorRT-LLM issue 3223), hence the choice. ONNX Runtime runs the result on a CPU too
(it casts where it has no FP16 kernel), which is how it is checked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fusar_edge.errors import GateError

CACHE = ("past", "new")
KEPT = ("*patch_embed", "tlm*")
"""Linears that stay FP32: they are small."""
SCALED = ("*.down_proj", "*.outliers")
"""Linears whose inputs can go beyond FP16's 65,504 in large models: they are divided before and multiplied after."""
SCALE = 64.0
"""A power of two, so that it costs no precision but below 0.004, where FP16 begins to lose digits then."""
MOVES = {"Slice", "Concat", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Gather", "Split", "Expand", "Identity"}
"""Operators that only move values: they are repeated in FP16 rather than fed from an FP32 copy."""
_DATA_INPUTS = {"Concat": None}  # every input is data; else the first
LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class HalfReport:
    """What was changed."""

    attention: int
    """Products of two activations."""
    linears: tuple[str, ...]
    kept: tuple[str, ...]
    """Linears with FP32 weights that were left."""


def half_file(source: Path, target: Path, *, linears: bool = True, keep: Sequence[str] = KEPT) -> HalfReport:
    """Read a graph (FP32, or INT8 with Q/DQ), write it with FP16 parts. See `half_graph`."""
    model = onnx.load(str(source))
    report = half_graph(model, linears=linears, keep=keep)
    large = model.ByteSize() > 1 << 30
    onnx.save(model, str(target), save_as_external_data=large, location=f"{target.name}.data" if large else None)
    return report


def half_graph(model: onnx.ModelProto, *, linears: bool = True, keep: Sequence[str] = KEPT) -> HalfReport:
    """Change a graph in place. `linears`: also MatMuls with FP32 weights whose name matches no pattern of `keep`.

    GateError for a weight that FP16 cannot hold, named.
    """
    rewrite = _Rewrite(model.graph)
    done, kept = [], []
    for node in [n for n in model.graph.node if n.op_type == "MatMul"]:
        weight = rewrite.float_weight(node.input[1])
        if rewrite.comes_from_int8(node):
            continue
        if weight is None:
            rewrite.run_in_half(node)
        elif linears and not any(fnmatch(node.name, pattern) for pattern in keep):
            if np.abs(weight).max(initial=0.0) > LARGEST:
                raise GateError(
                    f"{node.name}: its weights reach {np.abs(weight).max():.0f}, FP16 ends at {LARGEST:.0f}"
                )
            rewrite.run_in_half(node, SCALE if any(fnmatch(node.name, pattern) for pattern in SCALED) else None)
            done.append(node.name)
        else:
            kept.append(node.name)
    rewrite.halve_cache()
    attention = rewrite.halved - len(done)
    rewrite.finish()
    return HalfReport(attention, tuple(done), tuple(kept))


class _Rewrite:
    """A graph while FP16 copies of tensors are added to it."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self.producer = {name: node for node in graph.node for name in node.output if name}
        self.constants = {n.output[0]: n.attribute[0].t for n in graph.node if n.op_type == "Constant"}
        self.cache = {value.name: value for value in (*graph.input, *graph.output) if value.name in CACHE}
        self.halves: dict[str, str] = {}
        self.added: list[onnx.NodeProto] = []
        self.halved = 0

    def float_weight(self, name: str) -> Any:
        """The values of an FP32 weight or constant; None for an activation."""
        tensor = self.weights.get(name, self.constants.get(name))
        return None if tensor is None or tensor.data_type != TensorProto.FLOAT else numpy_helper.to_array(tensor)

    def comes_from_int8(self, node: onnx.NodeProto) -> bool:
        producers = (self.producer.get(name) for name in node.input)
        return all(p is not None and p.op_type == "DequantizeLinear" for p in producers)

    def run_in_half(self, node: onnx.NodeProto, scale: float | None = None) -> None:
        """Inputs in FP16, and the result back in FP32 under its old name.

        `scale`: the first input is divided by it before it is cast, and the result multiplied.
        """
        [output] = node.output
        if scale:
            node.input[0] = self._times(node.input[0], 1 / scale, f"{output}/scaled")
        for index, name in enumerate(node.input):
            node.input[index] = self.half(name)
        node.output[0] = f"{output}/half"
        back = f"{output}/unscaled" if scale else output
        self.added.append(helper.make_node("Cast", [node.output[0]], [back], f"{output}/float", to=TensorProto.FLOAT))
        if scale:
            self._times(back, scale, output)
        else:
            self.halves[output] = node.output[0]
        self.halved += 1

    def _times(self, name: str, factor: float, made: str) -> str:
        constant = f"{made}/factor"
        self.graph.initializer.append(numpy_helper.from_array(np.array(factor, np.float32), constant))
        self.added.append(helper.make_node("Mul", [name, constant], [made], f"{made}/times"))
        return made

    def half(self, name: str) -> str:
        """The FP16 copy of a tensor: moved through operators that only move, cast where it is computed."""
        if name in self.halves:
            return self.halves[name]
        made = f"{name}/half"
        producer = self.producer.get(name)
        weight = self.float_weight(name)
        if name == "past" and name in self.cache:
            made = name
        elif weight is not None:
            made_tensor = numpy_helper.from_array(weight.astype(np.float16), made)
            self.graph.initializer.append(made_tensor)
        elif producer is not None and producer.op_type in MOVES:
            self._move_in_half(producer)
            return self.halves[name]
        else:
            self.added.append(helper.make_node("Cast", [name], [made], made, to=TensorProto.FLOAT16))
        self.halves[name] = made
        return made

    def _move_in_half(self, node: onnx.NodeProto) -> None:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = f"{node.name}/half"
        data = range(len(node.input)) if node.op_type in _DATA_INPUTS else range(1)
        for index in data:
            copy.input[index] = self.half(node.input[index])
        for index, output in enumerate(node.output):
            copy.output[index] = self.halves[output] = f"{output}/half"
        self.added.append(copy)

    def halve_cache(self) -> None:
        """`past` and `new` in FP16; what still reads `past` in FP32 reads a cast of it."""
        if "new" in self.cache:
            producer = self.producer["new"]
            half = self.half("new")
            for index, output in enumerate(producer.output):
                if output == "new":
                    producer.output[index] = "new/float"
            for node in (*self.graph.node, *self.added):
                for index, name in enumerate(node.input):
                    if name == "new":
                        node.input[index] = "new/float"
            self.added.append(helper.make_node("Identity", [half], ["new"], "new/cache"))
        if "past" in self.cache:
            copies = {id(node) for node in self.added}
            readers = [
                (node, index)
                for node in self.graph.node
                if id(node) not in copies and node.op_type != "Shape"  # of any type
                for index, name in enumerate(node.input)
                if name == "past"
            ]
            for node, index in readers:
                node.input[index] = "past/float"
            self.added.append(helper.make_node("Cast", ["past"], ["past/float"], "past/float", to=TensorProto.FLOAT))
        for value in self.cache.values():
            value.type.tensor_type.elem_type = TensorProto.FLOAT16

    def finish(self) -> None:
        """Drop what nobody reads any more, and put the nodes in an order in which each comes after its inputs."""
        nodes = [*self.graph.node, *self.added]
        needed = {value.name for value in self.graph.output}
        producer = {name: node for node in nodes for name in node.output if name}
        keep, stack = set(), list(needed)
        while stack:
            node = producer.get(stack.pop())
            if node is not None and id(node) not in keep:
                keep.add(id(node))
                stack.extend(name for name in node.input if name)
        ordered = _in_order([node for node in nodes if id(node) in keep], set(producer))
        used = Counter(name for node in ordered for name in node.input)
        tensors = [tensor for tensor in self.graph.initializer if used[tensor.name]]
        for field, values in (("node", ordered), ("initializer", tensors)):
            copies = [type(value).FromString(value.SerializeToString()) for value in values]
            del getattr(self.graph, field)[:]
            getattr(self.graph, field).extend(copies)
        del self.graph.value_info[:]  # shapes and types of before


def _in_order(nodes: list[onnx.NodeProto], produced: set[str]) -> list[onnx.NodeProto]:
    """Topological order that keeps the given one where it can (Kahn's algorithm)."""
    waiting = {id(node): sum(name in produced for name in set(node.input)) for node in nodes}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        for name in set(node.input):
            readers.setdefault(name, []).append(node)
    ready = [node for node in nodes if not waiting[id(node)]]
    ordered = []
    while ready:
        node = ready.pop(0)
        ordered.append(node)
        for name in node.output:
            for reader in readers.get(name, []):
                waiting[id(reader)] -= 1
                if not waiting[id(reader)]:
                    ready.append(reader)
    assert len(ordered) == len(nodes), "a cycle"
    return ordered
