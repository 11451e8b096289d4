"""A graph in parts that can be run one after the other: what comes before the layers, each layer, what follows.

A part is a set of nodes; its inputs are values of earlier parts. So a graph whose weights do not fit in memory is run
by running its parts with the few values between them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper

Array = npt.NDArray[Any]
BEFORE, AFTER = "before", "after"
_LAYER = re.compile(r"(vision\.blocks\.\d+|decoder\.layers\.\d+|vision\.patch_embed|vision\.merger|tlm)\b")
_HEAD = re.compile(r"(decoder\.norm|decoder\.lm_head)\b")
HEAD = "decoder.head"


@dataclass(frozen=True)
class Part:
    """Nodes of a graph that are run together."""

    name: str
    """That of the layer, such as `decoder.layers.3`; `decoder.head` is the last norm and lm_head."""
    nodes: tuple[NodeProto, ...]
    """With every Constant that they read, also where other parts read it too."""
    inputs: tuple[str, ...]
    """Values of earlier parts and inputs of the graph; constants are not among them."""
    outputs: tuple[str, ...]
    """Values that later parts read, and outputs of the graph."""


def parts_of(model: onnx.ModelProto, keep: Collection[str] = ()) -> dict[str, Part]:
    """The parts in the order in which they are run. `keep`: values that are outputs of their part in any case.

    `before` needs inputs of the graph alone. What has no layer's name and needs one belongs to the layer that reads it
    first, or else to `after`.
    """
    nodes = [node for node in model.graph.node if node.op_type != "Constant"]
    names = [_part_name(node.name) for node in nodes]
    order = [BEFORE, *dict.fromkeys(name for name in names if name), AFTER]
    place = {name: number for number, name in enumerate(order)}
    first_reader: dict[str, int] = {}
    for node, name in zip(reversed(nodes), reversed(names), strict=True):
        at = place[name] if name else min((first_reader.get(v, place[AFTER]) for v in node.output), default=0)
        for value in node.input:
            first_reader[value] = min(at, first_reader.get(value, at))
    ready: dict[str, int] = {}
    found: dict[str, list[NodeProto]] = {name: [] for name in order}
    for node, name in zip(nodes, names, strict=True):
        latest = max((ready.get(value, 0) for value in node.input), default=0)
        if not name:
            at = 0 if latest == 0 else min(first_reader.get(value, place[AFTER]) for value in node.output)
            name = order[at]
        assert place[name] >= latest, f"{node.name} of {name} reads a value of {order[latest]}"
        ready.update(dict.fromkeys(node.output, place[name]))
        found[name].append(node)
    outside = {v.name for v in model.graph.output} | set(keep)
    return {name: _part(name, nodes, found, outside, model) for name, nodes in found.items() if nodes}


def _part_name(node: str) -> str:
    layer = _LAYER.match(node)
    return layer[1] if layer else HEAD if _HEAD.match(node) else ""


def _part(
    name: str, nodes: list[NodeProto], found: Mapping[str, list[NodeProto]], outside: set[str], model: onnx.ModelProto
) -> Part:
    tables = [node for node in model.graph.node if node.op_type == "Constant"]
    constants = {t.name for t in model.graph.initializer} | {node.output[0] for node in tables}
    made = {value for node in nodes for value in node.output}
    read = dict.fromkeys(value for node in nodes for value in node.input if value)
    elsewhere = {value for other, rest in found.items() if other != name for node in rest for value in node.input}
    return Part(
        name,
        (*(node for node in tables if node.output[0] in read), *nodes),
        tuple(value for value in read if value not in made and value not in constants),
        tuple(v for node in nodes for v in node.output if v in outside or v in elsewhere),
    )


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of each value."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {v.name: v.type.tensor_type.elem_type for v in [*graph.input, *graph.value_info, *graph.output]}


def model_of(
    part: Part,
    nodes: Iterable[NodeProto],
    constants: Iterable[TensorProto],
    types: Mapping[str, int],
    of: onnx.ModelProto,
    outputs: Collection[str] = (),
) -> onnx.ModelProto:
    """A part as a graph of its own. `nodes`: its own, or what they were rewritten to; `outputs`: some of its own."""

    def value(name: str) -> Any:
        return helper.make_tensor_value_info(name, types[name], None)

    nodes = list(nodes)
    read = {name for node in nodes for name in node.input}
    wanted = [name for name in part.outputs if not outputs or name in outputs]
    held = [tensor for tensor in constants if tensor.name in read]
    graph = helper.make_graph(nodes, part.name, [value(n) for n in part.inputs], [value(n) for n in wanted], held)
    return helper.make_model(graph, opset_imports=of.opset_import, ir_version=of.ir_version)


class Runner:
    """ONNX Runtime on one part."""

    def __init__(self, model: onnx.ModelProto, folder: Path, held: Mapping[str, Array] | None = None) -> None:
        """`folder`: where external data lies. `held`: external constants that are given here instead."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # A second copy of each weight, in another layout, is memory for speed: the other way round here.
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        if held:
            self._held = [onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in held.values()]
            options.add_external_initializers(list(held), self._held)
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]

    def __call__(self, values: Mapping[str, Array]) -> dict[str, Array]:
        feed = {name: values[name] for name in self.inputs}
        return dict(zip(self.outputs, self.session.run(None, feed), strict=True))
