"""The graph that a fused decoder was made of: kept beside it without its weights, and given them back.

What runs the plain graph (the peers of `bench`, TensorRT) can so be compared on the weights of a fused bundle.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from fusar_edge.calib.qdq import save_graph
from fusar_edge.engines.fused import ZERO, parts_of
from fusar_edge.engines.layer_source import Array, LayerSource, Place
from fusar_edge.manifest import FILENAME
from fusar_edge.runtime.adapters import read_tensors
from fusar_edge.runtime.bundle import DECODER, PLAIN_DECODER, Bundle

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


def without_weights(model: ModelProto, fused: ModelProto) -> ModelProto:
    """A copy in which the tensors that the fused graph holds have a shape and no values."""
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(model)
    held = {tensor.name for tensor in fused.graph.initializer}
    for _, places in _products(fused, LayerSource(model)):
        held |= {name for place in places for name in (place.values, place.scale) if name and not place.split}
    for tensor in result.graph.initializer:
        if tensor.name in held:
            tensor.ClearField("raw_data")
    return result


def with_weights(empty: ModelProto, fused: ModelProto) -> ModelProto:
    """`empty` with the weights of the fused graph.

    INT8 codes, scales and ranges are bit for bit what calibration wrote; a linear that it kept in float has the values
    that its INT8 blocks stand for.
    """
    from onnx import numpy_helper

    source = LayerSource(empty)
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in fused.graph.initializer}
    found = {name: held[name] for name in source.tensors if name in held}
    for node, places in _products(fused, source):
        values, scale = _matrix(node, held)
        first = 0
        for place in places:
            size = source.tensors[place.values].dims[0 if place.rows else 1]
            part = slice(first, first + size)
            first += size
            if place.split:  # the fused graph holds it as one matrix: its parts stayed here
                continue
            found |= _placed(place, values[part], None if scale is None else scale[part])
    for name, value in found.items():
        source.tensors[name].CopyFrom(numpy_helper.from_array(np.asarray(value, order="C"), name))
    return empty


def plain_decoder(bundle: Bundle) -> ModelProto:
    """The decoder of a bundle for ONNX Runtime as DESIGN section 3 has it, whether the bundle's is fused or not."""
    import onnx

    model = onnx.load(bundle.file(DECODER))
    if bundle.settings.adapters is not None:
        active = read_tensors(bundle.folder, bundle.settings.adapters.active)
        for tensor in model.graph.initializer:
            if tensor.name in active:
                tensor.CopyFrom(onnx.numpy_helper.from_array(active[tensor.name], tensor.name))
    return model if bundle.settings.fused is None else with_weights(onnx.load(bundle.file(PLAIN_DECODER)), model)


def plain_bundle(bundle: Bundle, folder: Path) -> Bundle:
    """The bundle with its plain decoder, as unsealed files in the new `folder`; itself where it is not fused."""
    if bundle.settings.fused is None:
        return bundle
    kept_out = shutil.ignore_patterns(FILENAME, f"{DECODER}*", PLAIN_DECODER)
    shutil.copytree(bundle.folder, folder, ignore=kept_out)
    save_graph(plain_decoder(bundle), folder / DECODER)
    return dataclasses.replace(bundle, folder=folder, settings=msgspec.structs.replace(bundle.settings, fused=None))


def _products(fused: ModelProto, source: LayerSource) -> Iterator[tuple[NodeProto, list[Place]]]:
    """Each product of the fused graph, and where the plain one keeps the matrices it is made of."""
    for node in fused.graph.node:
        if node.op_type in ("MatMulNBits", "MatMul"):
            yield node, [source.place(part) for part in parts_of(node.name)]


def _matrix(node: NodeProto, held: dict[str, Array]) -> tuple[Array, npt.NDArray[np.float32] | None]:
    """Codes [out, in] and a scale for each, or floats and None."""
    values = held[node.input[1]]
    if node.op_type == "MatMul":
        return values.T, None
    size: dict[str, Any] = {a.name: a.i for a in node.attribute}
    codes = (values.reshape(size["N"], -1)[:, : size["K"]].astype(np.int16) - ZERO).astype(np.int8)
    scale = np.repeat(held[node.input[2]].reshape(size["N"], -1), size["block_size"], axis=1)
    return codes, scale[:, : size["K"]]


def _placed(place: Place, values: Array, scale: npt.NDArray[np.float32] | None) -> dict[str, Array]:
    if place.scale is not None and scale is not None:
        return {place.values: values if place.rows else values.T, place.scale: scale[:, 0]}
    floats = values if scale is None else values * scale
    return {place.values: floats if place.rows else floats.T}
