"""Is an INT8 graph what its FP32 graph and its manifest say? Exact checks, where a metric would see an average.

Each weight is within half a step of its float; each activation's scale is the recorded range over 127; whatever is no
INT8 is the same to the bit (tables read by Gather: to FP16).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fusar_edge.calib.outliers import with_outliers
from fusar_edge.calib.qdq import Linear, linears

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

HALF_STEP = 0.501
"""Of a step: what rounding may be off, with room for the rounding of the division."""
TOLERANCE = 1e-4
"""Of a scale; a manifest has six digits of a range."""


def audit(int8: Path, fp32: Path, ranges: Mapping[str, float]) -> list[str]:
    """What is wrong with the graph `int8`, made of the graph `fp32`; empty: nothing. `ranges`: layer name -> |x|."""
    import onnx

    return list(_problems(onnx.load(int8), onnx.load(fp32), ranges))


def _problems(int8: ModelProto, fp32: ModelProto, ranges: Mapping[str, float]) -> Iterator[str]:
    from onnx import numpy_helper

    held, true = ({t.name: t for t in model.graph.initializer} for model in (int8, fp32))
    nodes = {node.name: node for node in int8.graph.node}
    makers = {name: node for node in int8.graph.node for name in node.output}
    weights = set()
    for layer in linears(fp32):
        node = nodes.get(layer.name)
        if node is None:
            yield f"{layer.name} is missing"
            continue
        maker = makers.get(node.input[1])
        if maker is None or maker.op_type != "DequantizeLinear":
            continue
        weights.add(layer.weight)
        yield from _weight(layer, maker, held, numpy_helper.to_array(true[layer.weight]))
        yield from _activation(layer, makers.get(node.input[0]), held, ranges)
    for name, tensor in true.items():
        if name in held:
            yield from _same(name, held[name], tensor)
        elif name not in weights:
            yield f"{name} is missing"


def _weight(
    layer: Linear, maker: NodeProto, held: Mapping[str, TensorProto], weight: npt.NDArray[Any]
) -> Iterator[str]:
    from onnx import numpy_helper

    codes, scale = (numpy_helper.to_array(held[name]) for name in maker.input[:2])
    shape = [-1 if axis == layer.axis else 1 for axis in range(weight.ndim)]
    others = tuple(axis for axis in range(weight.ndim) if axis != layer.axis)
    found = with_outliers(codes.astype(np.float32) * scale.reshape(shape), layer.name, held)
    step = np.abs(weight).max(others) / 127
    wrong = np.abs(found - weight).max(others) > HALF_STEP * step
    if wrong.any():
        worst = int(np.argmax(np.abs(found - weight).max(others) / np.maximum(step, np.finfo(np.float32).tiny)))
        yield f"{layer.name}: {wrong.sum()} output channels are not their FP32 weights in INT8 (channel {worst} worst)"


def _activation(
    layer: Linear, maker: NodeProto | None, held: Mapping[str, TensorProto], ranges: Mapping[str, float]
) -> Iterator[str]:
    from onnx import numpy_helper

    if maker is None or maker.op_type != "DequantizeLinear":
        yield f"{layer.name}: its weight is INT8 and its activation is not"
    elif layer.name not in ranges:
        yield f"{layer.name}: the manifest has no range for it"
    else:
        found, said = float(numpy_helper.to_array(held[maker.input[1]])) * 127, ranges[layer.name]
        if not abs(found / said - 1) <= TOLERANCE:
            yield f"{layer.name}: its scale says a range of {found:.5g}, the manifest {said:.5g}"


def _same(name: str, held: TensorProto, true: TensorProto) -> Iterator[str]:
    from onnx import numpy_helper

    found, value = numpy_helper.to_array(held), numpy_helper.to_array(true)
    if not np.array_equal(found, value.astype(found.dtype), equal_nan=True):
        yield f"{name} is not that of FP32"
