"""The graph of a bundle without its Q/DQ: each weight the float that its codes stand for, activations as they come."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fusar_edge.calib.outliers import SUFFIX, with_outliers
from fusar_edge.errors import BundleError, MissingExtraError
from fusar_edge.manifest import output_folder
from fusar_edge.runtime.bundle import DECODER, TENSORRT, VISION, Bundle

if TYPE_CHECKING:
    from onnx import ModelProto


def fp32_model(path: Path) -> ModelProto:
    import onnx

    return fp32_from(onnx.load(path))


def fp32_from(model: ModelProto) -> ModelProto:
    """In place: INT8 weights are dequantised, Q/DQ pairs of activations go, FP16 tables become FP32.

    Channels that were multiplied apart (fusar_edge.calib.outliers) come back into their weight.
    """
    import onnx
    from onnx import numpy_helper

    layers = {name: layer for node in model.graph.node if (layer := node.name) for name in node.input[1:2]}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    passed: dict[str, str] = {}  # output of a node that goes -> what is read instead
    kept = []
    for node in model.graph.node:
        source = passed.get(node.input[0], node.input[0]) if node.input else ""
        if node.op_type == "DequantizeLinear" and source in constants:
            weight, scale = (numpy_helper.to_array(constants[name]) for name in node.input[:2])
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            value = with_outliers(dequantised(weight, scale, axis), layers.get(node.output[0], ""), constants)
            model.graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            passed[node.output[0]] = source
        elif node.name.rpartition("/")[0].endswith(SUFFIX) or node.name.endswith(SUFFIX):
            if node.op_type == "Add":
                passed[node.output[0]] = passed.get(node.input[0], node.input[0])
        else:
            node.input[:] = [passed.get(name, name) for name in node.input]
            kept.append(node)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    used = {name for node in kept for name in node.input}
    weights = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(kept)
    model.graph.initializer.extend(weights)
    return model


def dequantised(codes: npt.NDArray[Any], scale: npt.NDArray[Any], axis: int) -> npt.NDArray[np.float32]:
    """codes * scale, the scale one number or one for each index along `axis`; the zero point is 0 in every graph."""
    shape = [-1 if i == axis else 1 for i in range(codes.ndim)] if scale.ndim else []
    return (codes.astype(np.float32) * scale.reshape(shape)).astype(np.float32)


def fp32_models(bundle: Bundle) -> tuple[ModelProto, ModelProto]:
    """Vision and decoder of a bundle. BundleError where it holds plans; MissingExtraError without onnx."""
    from importlib.util import find_spec

    if find_spec("onnx") is None:
        raise MissingExtraError(
            "the weights of a bundle are read with onnx, which is not installed: pip install 'fusar-edge[workshop]'"
        )
    if bundle.settings.engine == TENSORRT:
        raise BundleError(
            f"{bundle.folder} holds TensorRT plans, whose weights cannot be read back: compare with the bundle for "
            "onnxruntime that was built from the same graphs"
        )
    from fusar_edge.engines.plain_twin import plain_decoder

    return fp32_model(bundle.file(VISION)), fp32_from(plain_decoder(bundle))


def fp32_folder(bundle: Bundle, work: Path) -> Path:
    """Folder in `work` with both graphs of the bundle in FP32; made once for each bundle."""
    from fusar_edge.calib.qdq import save_graph

    folder = work / f"fp32-{bundle.sha256[:16]}"
    if folder.is_dir():
        return folder
    with output_folder(folder) as made:
        for name, model in zip((VISION, DECODER), fp32_models(bundle), strict=True):
            save_graph(model, made / name)
    return folder
