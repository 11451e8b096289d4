"""Which products of a Q/DQ graph run in INT8, and why the others do not.

A product runs in INT8 where both of its inputs come straight from a DequantizeLinear: the weight's of INT8 codes, with
a scale per output channel (or one for all); the activation's of a QuantizeLinear, with one scale. All zero points are
0. What TensorRT-RTX 1.7 makes of graphs that break one of these rules is in tests/engines/test_compile_gate.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from rich.markup import escape
from rich.table import Table

from fusar_edge.calib.outliers import SUFFIX
from fusar_edge.calib.qdq import BRANCH, SMALLEST_WIDTH
from fusar_edge.engines.kernels import Kernels

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

PRODUCTS = ("MatMul", "Gemm", "Conv")
MOVES = ("Cast", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose",
         "Unsqueeze", "Relu", "Clip")  # fmt: skip
"""Operators that are looked through for a DequantizeLinear behind them."""

TWO_ACTIVATIONS = "product of two activations: stays in floating point by design"
PROBABILITIES = "probabilities times values: floating point by design, INT8 would make all below 1/254 zero"
NARROW = f"a constant that is no matrix of at least {SMALLEST_WIDTH} x {SMALLEST_WIDTH} is geometry, not a layer"
ON_THE_LEFT = "a constant on the left is geometry (a resize), not a layer"
OUTLIERS = "outlier channels, multiplied in float beside the INT8 product by the recipe"
ADAPTER = "branch of a task adapter, in float so that the adapter can be exchanged"
INT32_BIAS = "an INT32 bias behind DequantizeLinear, which TensorRT refuses: leave the bias in floating point"
BUILT_FLOATING = "Q/DQ is right, but the engine that was built runs it in floating point"
BUILT_UNNAMED = "Q/DQ is right, but the engine that was built names no INT8 kernel for it"
BUILT_INT8 = "the engine that was built runs it in INT8, although: "


@dataclass(frozen=True)
class Finding:
    """One MatMul, Gemm or Conv; or the DequantizeLinear of an INT32 bias."""

    name: str
    op: str
    kind: Literal["weights", "activations", "geometry", "bias"]
    """Product with a layer's weight; of two activations; with a constant that is no weight; no product at all."""
    int8: bool
    reason: str = ""
    """Why not. Empty where `int8`, but for a product that only the engine that was built knows to be INT8."""
    macs: int | None = None
    """Multiply-accumulates; None: not counted (fusar_edge.calib.macs.counted)."""


def lint(model: ModelProto, kept: Mapping[str, str] = {}, engine: Kernels | None = None) -> list[Finding]:
    """Every product of the graph in its order, then INT32 biases. `model` must hold its external data.

    `kept`: node -> why it is not quantised, as `calibrate` writes it into the manifest; such a node counts as a layer.
    `engine`: what was built of the graph; it has the last word. One that names no product (the log of a version that
    is not understood) is as none.
    """
    graph = _Graph(model)
    beside = {SUFFIX: OUTLIERS, **dict.fromkeys(BRANCH, ADAPTER)}
    kept = {n.name: why for n in products(model) for end, why in beside.items() if n.name.endswith(end)} | dict(kept)
    findings = [_judged(graph, node, kept) for node in products(model)]
    if engine is not None and engine.int8 | engine.floating:
        findings = [_as_built(finding, engine) for finding in findings]
    return findings + [
        Finding(node.name, node.op_type, "bias", int8=False, reason=INT32_BIAS, macs=0)
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and graph.type_of(node.input[0]) == "INT32"
    ]


def products(model: ModelProto) -> Iterator[NodeProto]:
    """Nodes that multiply, in graph order."""
    return (node for node in model.graph.node if node.op_type in PRODUCTS)


def _judged(graph: _Graph, node: NodeProto, kept: Mapping[str, str]) -> Finding:
    left, right = graph.operand(node.input[0]), graph.operand(node.input[1])
    kind: Literal["weights", "activations", "geometry"] = "weights"
    if left.constant is None and right.constant is None:
        kind, problems = "activations", _of_activations(graph, left, right)
    elif (geometry := _geometry(node, left, right)) and node.name not in kept:
        kind, problems = "geometry", [geometry]
    else:
        sides = ((left, _channels(node, left, first=True)), (right, _channels(node, right, first=False)))
        problems = [p for operand, axis in sides for p in _problems(graph, operand, axis, "activation")]
    reason = "; ".join(problems)
    return Finding(node.name, node.op_type, kind, not reason, kept.get(node.name, reason) if reason else "")


def _of_activations(graph: _Graph, left: _Operand, right: _Operand) -> list[str]:
    if left.dequantise is None and right.dequantise is None:
        return [PROBABILITIES if left.source == "Softmax" else TWO_ACTIVATIONS]
    return [*_problems(graph, left, 0, "left activation"), *_problems(graph, right, 0, "right activation")]


def _geometry(node: NodeProto, left: _Operand, right: _Operand) -> str:
    """Why the constant of this product is no weight; as fusar_edge.calib.qdq.linears has it."""
    if right.constant is None:
        return ON_THE_LEFT if left.dequantise is None else ""
    narrow = len(right.constant.dims) != 2 or min(right.constant.dims) < SMALLEST_WIDTH
    return NARROW if right.dequantise is None and node.op_type != "Conv" and narrow else ""


def _channels(node: NodeProto, operand: _Operand, *, first: bool) -> int:
    """Axis of a constant operand that runs over output channels (for `first`, over the rows of the result)."""
    if node.op_type == "Conv" or operand.constant is None:
        return 0
    if node.op_type == "MatMul":
        return len(operand.constant.dims) - (2 if first else 1)
    return _attribute(node, "transA", 0) if first else 1 - _attribute(node, "transB", 0)


def _problems(graph: _Graph, operand: _Operand, channels: int, activation: str) -> Iterator[str]:
    """What keeps this input from being read as INT8."""
    what = activation if operand.constant is None else "weight"
    if operand.dequantise is None:
        yield f"{activation} without Q/DQ" if operand.constant is None else "weight not quantised"
        return
    for node in operand.between:
        yield f"{node.op_type} {node.name} between the {what}'s DequantizeLinear and the product"
    found = [p for node in operand.pair for p in _scaling(graph, node, operand, channels, what)]
    yield from dict.fromkeys(found)


def _scaling(graph: _Graph, node: NodeProto, operand: _Operand, channels: int, what: str) -> Iterator[str]:
    """Faults of one QuantizeLinear or DequantizeLinear."""
    zero = graph.constants.get(node.input[2]) if len(node.input) > 2 else None
    codes = graph.type_of(node.input[0] if node.op_type == "DequantizeLinear" else node.output[0])
    if codes is None:
        yield f"{what} codes that no QuantizeLinear makes"
    elif codes != "INT8":
        yield f"{what} in {codes}, not INT8"
    elif zero is not None and graph.values(zero).any():
        yield f"asymmetric zero point of the {what}"
    scale = graph.constants.get(node.input[1])
    if scale is None:
        yield f"{what} scale is computed, not a constant"
    elif math.prod(scale.dims) == 1:
        return
    elif operand.constant is None:
        yield f"{what} scale per channel"
    elif not operand.between:
        axis = _attribute(node, "axis", 1) % len(operand.constant.dims)
        if axis != channels:
            yield f"weight scale along axis {axis}: output channels are axis {channels}"


def _as_built(finding: Finding, engine: Kernels) -> Finding:
    runs = finding.name in engine.int8 - engine.floating  # in every profile
    if finding.int8 and not runs:
        return replace(finding, int8=False, reason=BUILT_FLOATING if finding.name in engine.floating else BUILT_UNNAMED)
    if runs and not finding.int8:
        return replace(finding, int8=True, reason=BUILT_INT8 + finding.reason)
    return finding


@dataclass(frozen=True)
class _Operand:
    """Where an input of a product comes from."""

    source: str
    """Operator in front of the moves; empty for a constant or an input of the graph."""
    between: tuple[NodeProto, ...]
    """Moves behind the DequantizeLinear."""
    pair: tuple[NodeProto, ...]
    """DequantizeLinear, and the QuantizeLinear in front of it."""
    constant: TensorProto | None
    """What it is made of, where that does not depend on the graph's inputs."""

    @property
    def dequantise(self) -> NodeProto | None:
        return self.pair[0] if self.pair else None


class _Graph:
    """Constants by name (initialisers and Constant nodes) and the node that makes each other tensor."""

    def __init__(self, model: ModelProto) -> None:
        self.constants = dict(constants(model))
        self.makers = {name: node for node in model.graph.node for name in node.output if name not in self.constants}

    def operand(self, name: str) -> _Operand:
        between, moved = [], True
        while (node := self.makers.get(name)) is not None and node.op_type in MOVES:
            between.append(node)
            moved = moved and all(other in self.constants for other in node.input[1:] if other)
            name = node.input[0]
        pair: list[NodeProto] = []
        for op in ("DequantizeLinear", "QuantizeLinear"):
            if (maker := self.makers.get(name)) is not None and maker.op_type == op:
                pair.append(maker)
                name = maker.input[0]
        constant = self.constants.get(name) if moved else None
        return _Operand(node.op_type if node else "", tuple(between) if pair else (), tuple(pair), constant)

    def type_of(self, name: str) -> str | None:
        """Type of codes, such as `INT8`; None where neither a constant nor a QuantizeLinear makes them."""
        from onnx import TensorProto

        maker = self.makers.get(name)
        if maker is not None and maker.op_type == "QuantizeLinear":
            if len(maker.input) < 3 or not maker.input[2]:
                return "UINT8"  # what it makes without a zero point
            name = maker.input[2]
        tensor = self.constants.get(name)
        return TensorProto.DataType.Name(tensor.data_type) if tensor is not None else None

    def values(self, tensor: TensorProto) -> Any:
        from onnx import numpy_helper

        return numpy_helper.to_array(tensor)


def constants(model: ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """Initialisers and Constant nodes by name."""
    for tensor in model.graph.initializer:
        yield tensor.name, tensor
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            yield node.output[0], node.attribute[0].t


def _attribute(node: NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def table(findings: Iterable[Finding]) -> Table:
    """For people: what does not run in INT8, and why."""
    listed = list(findings)
    multiplied = [finding for finding in listed if finding.kind != "bias"]
    count = sum(finding.int8 for finding in multiplied)
    result = Table("not in INT8", "operator", "MMACs", "why")
    result.title, result.title_justify = f"{count} of {len(multiplied)} products run in INT8", "left"
    result.columns[2].justify = "right"
    for finding in listed:
        if not finding.int8:
            macs = "" if finding.macs is None else f"{finding.macs / 1e6:,.2f}"
            result.add_row(escape(finding.name), finding.op, macs, escape(finding.reason))
    return result


def records(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """For JSON: every finding, its fields by name."""
    return [asdict(finding) for finding in findings]
