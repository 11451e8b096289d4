"""The decoder as `export` or `calibrate` wrote it, read by the names of its layers (export/naming.py)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fusar_edge.calib.outliers import SUFFIX, with_outliers

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

Array = npt.NDArray[Any]
FREQUENCIES = ("decoder/Mul", "decoder/Mul_1", "decoder/Mul_2")
"""Nodes that turn time, row and column into angles."""
ROPE_SCALES = ("decoder/Mul_3", "decoder/Mul_4")


@dataclass(frozen=True)
class Weight:
    """The matrix of one linear."""

    values: Array
    """[out, in]; INT8 codes, or floats where `scale` is None."""
    scale: npt.NDArray[np.float32] | None
    """[out]."""


@dataclass(frozen=True)
class Place:
    """Where a linear keeps its matrix."""

    values: str
    scale: str | None
    rows: bool
    """[out, in] in the file; otherwise [in, out]."""
    split: bool = False
    """Some of its input channels are multiplied apart, in float (fusar_edge.calib.outliers)."""


class LayerSource:
    """Raises KeyError with the name of what the graph lacks."""

    def __init__(self, model: ModelProto) -> None:
        self.nodes: dict[str, NodeProto] = {node.name: node for node in model.graph.node}
        self.makers = {name: node for node in model.graph.node for name in node.output}
        self.tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    def depth(self) -> int:
        found = (re.match(r"decoder\.layers\.(\d+)\.", name) for name in self.nodes)
        return 1 + max((int(f[1]) for f in found if f), default=-1)

    def constant(self, node: str) -> Array:
        """The constant input of a node."""
        from onnx import numpy_helper

        for name in self.nodes[node].input:
            if name in self.tensors:
                return numpy_helper.to_array(self.tensors[name])
            if name in self.makers and self.makers[name].op_type == "Constant":
                return numpy_helper.to_array(self.makers[name].attribute[0].t)
        raise KeyError(f"the constant of {node}")

    def place(self, layer: str) -> Place:
        node = self.nodes[layer]
        rows = any(a.name == "transB" and a.i for a in node.attribute)
        maker = self.makers.get(node.input[1])
        if maker is None:
            return Place(node.input[1], None, rows)
        return Place(maker.input[0], maker.input[1], rows, f"{layer}{SUFFIX}" in self.nodes)

    def weight(self, layer: str) -> Weight:
        """Of a layer with outliers: floats, with what was taken out put back."""
        from onnx import numpy_helper

        place = self.place(layer)
        values = numpy_helper.to_array(self.tensors[place.values])
        scale = None if place.scale is None else numpy_helper.to_array(self.tensors[place.scale])
        if place.split and scale is not None:
            values, scale = with_outliers(values * scale, layer, self.tensors), None
        return Weight(values if place.rows else values.T, scale)

    def weights(self, layers: Iterable[str]) -> list[Weight]:
        return [self.weight(layer) for layer in layers]
