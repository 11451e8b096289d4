"""Is an INT8 graph what its FP32 graph and its manifest say? Exact, where a metric would see an average.

The graph is written again from FP32, the layers, ranges and outliers in the manifest, and compared: every node, every
tensor, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fusar_edge.calib.outliers import Split
from fusar_edge.calib.qdq import half_embeddings, linears, quantised

if TYPE_CHECKING:
    from onnx import ModelProto

TOLD = 3
"""Differences that are told of a graph; the rest is counted."""


def audit(int8: Path, fp32: Path, figures: Mapping[str, Any]) -> list[str]:
    """What is wrong with the graph `int8`, made of the graph `fp32`; empty: nothing.

    `figures`: what `calibrate` wrote of it into the manifest (calib.measured.MeasuredGraph.written).
    """
    import onnx

    wanted = _rewritten(onnx.load(fp32), figures["ranges"], figures.get("outliers", {}))
    found = list(_differences(onnx.load(int8), wanted))
    return found[:TOLD] + ([f"{len(found) - TOLD} more"] if len(found) > TOLD else [])


def _rewritten(fp32: ModelProto, ranges: Mapping[str, float], outliers: Mapping[str, list[int]]) -> ModelProto:
    layers = [layer for layer in linears(fp32) if layer.name in ranges]
    whole = {layer.activation: ranges[layer.name] for layer in layers if layer.name not in outliers}
    splits = {name: Split(np.array(channels, np.int64), ranges[name]) for name, channels in outliers.items()}
    result = quantised(fp32, layers, whole, splits)
    half_embeddings(result)
    return result


def _differences(found: ModelProto, wanted: ModelProto) -> Iterator[str]:
    from onnx import numpy_helper

    for kind, field in (("node", "node"), ("tensor", "initializer")):
        have, want = ({item.name: item for item in getattr(m.graph, field)} for m in (found, wanted))
        for name in want:
            if name not in have:
                yield f"{kind} {name} is missing"
            elif kind == "node" and have[name] != want[name]:
                yield f"node {name} is another one"
            elif kind == "tensor":
                a, b = numpy_helper.to_array(have[name]), numpy_helper.to_array(want[name])
                if a.dtype != b.dtype or not np.array_equal(a, b):
                    yield f"tensor {name} is not what FP32 and the ranges in the manifest make"
        yield from (f"{kind} {name} is one too many" for name in have if name not in want)
    for field in ("input", "output"):
        if list(getattr(found.graph, field)) != list(getattr(wanted.graph, field)):
            yield f"the graph's {field}s are others"
